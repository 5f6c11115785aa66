"""Decisions at rungs: who is compared with whom, when a rung may decide, and what becomes of the trials.

Rates are compared within one arm, on tuning seeds; arms only where the job says `compete: arms`, all seeds of an arm
together. A decision is a record, written once: what the store has is never judged again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fabric.job.schema import SearchConfig
from fabric.planning.choosing import mean_or_none
from fabric.planning.registry import Registry
from fabric.planning.stopping.base import Verdict
from fabric.planning.tasks import PhaseRun, Trial
from fabric.store import FAILED, FINISHED


@dataclass(frozen=True)
class Group:
    """Units that are judged together; `whole` says that no further unit will join."""

    units: dict[str, list[Trial]]
    whole: bool


def groups(run: PhaseRun, search: SearchConfig) -> Iterator[Group]:
    """A phase's groups: each arm's rates; and its arms, if they compete."""
    for arm in run.arms:
        points: dict[str, list[Trial]] = {}
        for trial in arm.tuning:
            points.setdefault(trial.point, []).append(trial)
        yield Group(points, whole=True)
    if search.compete == "arms":
        # Arms that are the same configuration share their trials: they are one unit.
        arms = {tuple(t.id for t in a.main): a for a in run.arms if a.main}
        units = {a.arm.name: a.main for a in arms.values() if a.main}
        yield Group(units, whole=all(a.is_settled for a in run.arms))


class Rungs:
    """The judge of a study's rungs on its records."""

    def __init__(self, registry: Registry) -> None:
        self.registry, self.search = registry, registry.search

    def judge(self, run: PhaseRun) -> None:
        """Take every decision that is due in a phase; trials that waited for one are stopped or go back in line."""
        for group in groups(run, self.search):
            for rung in sorted({r for ts in group.units.values() for t in ts for r in t.rungs}):
                self._judge_rung(group, rung)
        for trial in run.trials():
            if trial.state == "paused" and not trial.is_undecided:
                trial.state = "waiting"

    def _judge_rung(self, group: Group, rung: int) -> None:
        alive = {
            name: members
            for name, trials in group.units.items()
            if (members := [t for t in trials if rung in t.rungs and not _left_before(t, rung)])
        }
        for members in alive.values():
            self._share(members, rung)
        complete = {n: ms for n, ms in alive.items() if all(_has_reached(m, rung) for m in ms)}
        if self.search.scheduler.sync and not (group.whole and len(complete) == len(alive)):
            return
        values = {n: mean_or_none([self._value(m, rung) for m in ms]) for n, ms in complete.items()
                  if not any(self._passed_unseen(m, rung) for m in ms)}  # fmt: skip
        for name in values:
            members = complete[name]
            if rung not in members[0].decisions:
                verdict = self.search.scheduler.judge(name, rung, values)
                for member in members:
                    self._apply(member, rung, name, verdict)

    def _share(self, members: list[Trial], rung: int) -> None:
        """Give a decision that some of a unit's trials have (the driver died in between) to the others."""
        taken = next((m.decisions[rung] for m in members if rung in m.decisions), None)
        if taken is not None:
            for member in members:
                if rung not in member.decisions:
                    self._keep(member, rung, taken)

    def _apply(self, trial: Trial, rung: int, unit: str, verdict: Verdict) -> None:
        self._keep(
            trial,
            rung,
            {**verdict.as_reason(), "stop": verdict.stop, "unit": unit, "study": self.registry.id},
        )

    def _keep(self, trial: Trial, rung: int, body: dict[str, Any]) -> None:
        trial.decisions[rung] = body
        if not self.registry.dry:
            self.registry.record(trial).write_decision(f"{self.registry.id}-{rung}", body)
        if body["stop"] and trial.state in ("paused", "waiting", "leaving"):
            trial.state, trial.end = "ended", "stopped"

    # -- values -----------------------------------------------------------------------------------------------

    def _value(self, trial: Trial, rung: int) -> float | None:
        """The value at a rung; a trial that ended before it (converged, diverged) stands there with its end."""
        return trial.rung_values[rung] if rung in trial.rung_values else self.registry.last_value(trial)

    def _passed_unseen(self, trial: Trial, rung: int) -> bool:
        """Whether a finished trial went past the rung without being looked at (it was trained by another study).

        Its final loss, after more tokens, compares with nothing there.
        """
        if rung in trial.rung_values:
            return False
        return ((self.registry.record(trial).final() or {}).get("tokens") or 0) > rung


def _left_before(trial: Trial, rung: int) -> bool:
    """Whether a trial was stopped at an earlier rung, or failed: it is no member of this one."""
    return trial.end == FAILED or any(r < rung and d["stop"] for r, d in trial.decisions.items())


def _has_reached(trial: Trial, rung: int) -> bool:
    return rung in trial.rung_values or trial.end == FINISHED
