"""ASHA: asynchronous successive halving (Li et al. 2018, arXiv 1810.05934), in its stopping form (as Ray Tune's): a
trial that is not promoted at a rung stops for good, and none waits there.

At each rung the best 1/eta of what has been seen there goes on. Asynchronous, the first arrivals pass on what little
is known, so which trials stop depends on the order of arrival. Synchronous (`sync: true`), a rung decides when all
its members have reported: the result is the same whatever the timing, and fewer tokens are spent; but a trial waits
at the rung, and takes a checkpoint there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from fabric.job.units import Count
from fabric.planning.stopping.base import StoppingRule, Verdict, worst_if_nan


class Asha(StoppingRule):
    """Rungs at `grace_tokens * reduction_factor**k`, below the full length.

    `grace_tokens` defaults to the length divided by reduction_factor**2 (two rungs).
    """

    kind: Literal["asha"]
    reduction_factor: int = Field(default=3, ge=2)
    grace_tokens: Count | None = Field(default=None, gt=0)

    def rungs(self, n_tokens: int) -> tuple[int, ...]:
        rung = self.grace_tokens or max(1, n_tokens // self.reduction_factor**2)
        found = []
        while rung < n_tokens:
            found.append(rung)
            rung *= self.reduction_factor
        return tuple(found)

    def judge(self, unit: str, rung: int, values: Mapping[str, float | None]) -> Verdict:
        """Stop unless the unit is among the best 1/eta (at least one) of the values seen; ties go on."""
        ranked = sorted(worst_if_nan(v) for v in values.values())
        n_kept = max(1, len(ranked) // self.reduction_factor)
        cutoff = ranked[n_kept - 1]
        mine = worst_if_nan(values[unit])
        # A unit that diverged stops even where nothing better has been seen yet.
        stop = mine > cutoff or mine == float("inf")
        shown = None if cutoff == float("inf") else cutoff
        return Verdict(stop, rung, values[unit], shown, dict(values))
