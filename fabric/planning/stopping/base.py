"""What a stopping rule is: rungs in tokens, and a pure decision from the values seen at a rung."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.parts import Part


@dataclass(frozen=True)
class Verdict:
    """A rung's decision about one unit (a rate, or an arm), with everything it was taken from."""

    stop: bool
    rung: int  # tokens
    value: float | None
    cutoff: float | None
    seen: Mapping[str, float | None]

    def as_reason(self) -> dict[str, Any]:
        """The written reason of a stop."""
        return {
            "kind": "stopped",
            "rung": self.rung,
            "value": self.value,
            "cutoff": self.cutoff,
            "seen": dict(self.seen),
        }


class StoppingRule(Part):
    """Base of the files in `fabric/planning/stopping/`."""

    sync: bool = False

    def rungs(self, n_tokens: int) -> tuple[int, ...]:
        """Token counts at which a trial of `n_tokens` is judged; none means it always runs to its end."""
        return ()

    def judge(self, unit: str, rung: int, values: Mapping[str, float | None]) -> Verdict:
        """Whether `unit` stops at a rung, from all `values` seen there (None: diverged), lower is better."""
        raise AssertionError("a rule with rungs defines its own judgement")


def worst_if_nan(value: float | None) -> float:
    """NaN, None and infinity are worse than every number."""
    return value if value is not None and math.isfinite(value) else math.inf
