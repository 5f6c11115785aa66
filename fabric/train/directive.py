"""What a report answers, and what a run returns. Plain data: importable without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Continue:
    """Train on."""


@dataclass(frozen=True)
class Stop:
    """End the trial here; `reason` (with a `kind`) is what its status will say."""

    reason: Mapping[str, Any] = field(default_factory=lambda: {"kind": "stopped"})


@dataclass(frozen=True)
class CheckpointAndExit:
    """Write a checkpoint and leave: the trial goes on later, here or elsewhere. `reason` as in `Stop`."""

    reason: Mapping[str, Any] = field(default_factory=lambda: {"kind": "paused"})


Directive = Continue | Stop | CheckpointAndExit
Report = Callable[[dict[str, Any]], Directive]
Leaving = Callable[[], bool]  # whether this process will soon be taken away; asked after every step
PREEMPTED = "preempted"


def keep_going(row: dict[str, Any]) -> Directive:
    """The report of a run nobody watches."""
    return Continue()


class PreemptedError(RuntimeError):
    """A trial's node is taken away, or was: no failure of the trial's, which goes on elsewhere."""


def never() -> bool:
    """Nobody takes this process away."""
    return False


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `state` is finished or stopped, `reason["kind"]` says why.

    Kinds of a finished run: completed, converged, diverged. Of a stopped one: paused, preempted (its
    process will be taken away; a checkpoint is on disk), or what `Stop` said.
    `final` holds the last row (for a finished run with all final metrics; None where a value is not finite).
    """

    state: str
    reason: Mapping[str, Any]
    step: int
    final: Mapping[str, Any]
