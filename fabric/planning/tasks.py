"""What a study keeps in mind: its trials, its arms and phases, and the tasks it hands out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fabric.job.load import Configuration
from fabric.planning.expand import Arm
from fabric.planning.trial import RanksConfig, TrialSpec

Role = Literal["tuning", "main"]
Action = Literal["continue", "stop", "pause"]
Cause = Literal["failure", "memory", "preemption"]  # why a worker let go of a trial that had not ended


@dataclass(frozen=True)
class Machine:
    """What the trials of this run are given; none of it is part of a trial's identity."""

    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    ranks: RanksConfig = field(default_factory=RanksConfig)


@dataclass
class Trial:
    """A planned trial and where it stands in this run.

    `state`: *waiting* for a place; *running*; *leaving* (told to pause, its worker has not let go yet); *paused*
    until its rung is decided; *ended* as `end` says. `numerics` is the fingerprint its attempts must have to count;
    None takes any.
    """

    spec: TrialSpec
    id: str
    phase: str
    arm: str
    point: str
    role: Role
    seed: int
    rungs: tuple[int, ...] = ()  # in tokens
    numerics: str | None = None
    state: Literal["waiting", "running", "leaving", "paused", "ended"] = "waiting"
    end: Literal["finished", "stopped", "failed"] | None = None
    failures: int = 0
    preemptions: int = 0
    rung_values: dict[int, float | None] = field(default_factory=dict)
    decisions: dict[int, dict[str, Any]] = field(default_factory=dict)  # by rung

    def reference(self) -> dict[str, Any]:
        """How a study's records name it."""
        strict = {} if self.numerics is None else {"numerics": self.numerics}
        return {"id": self.id, "seed": self.seed, "evaluation": self.spec.evaluation_key, **strict}

    @property
    def is_stopped(self) -> bool:
        """Whether a rung has decided against it."""
        return any(d["stop"] for d in self.decisions.values())

    @property
    def is_undecided(self) -> bool:
        """Whether it has reported at a rung that has not decided yet."""
        return bool(self.rung_values) and max(self.rung_values) not in self.decisions


@dataclass(frozen=True)
class Task:
    """What a worker is asked to do: train a trial, or read the test split with its last checkpoint."""

    kind: Literal["train", "test"]
    trial: Trial


@dataclass
class ArmRun:
    """An arm within a phase: its points (rates) to tune over, then its main trials.

    `configurations` are the arm's at each point; `out` says that no rate trained to its end.
    """

    arm: Arm
    index: int
    configuration: Configuration
    mismatch: float | None
    configurations: dict[str, Configuration]
    tuning: list[Trial] = field(default_factory=list)
    main: list[Trial] | None = None
    out: bool = False

    @property
    def tuning_in_turn(self) -> list[Trial]:
        """The tuning trials as they are handed out: the grid's middle first, then the middles of what is left.

        An asynchronous rung compares a trial with those before it: in rising order, every rate up to the best one
        would go on as the best so far.
        """
        n = len(self.configurations)
        n_seeds = len(self.tuning) // n
        return [t for i in middle_first(n) for t in self.tuning[i * n_seeds : (i + 1) * n_seeds]]

    @property
    def is_settled(self) -> bool:
        """Whether its rate is chosen, or will never be."""
        return self.main is not None or self.out


@dataclass
class PhaseRun:
    """A phase being worked on, or decided."""

    index: int
    name: str
    arms: list[ArmRun]
    baseline: str
    keep: int
    decision: dict[str, Any] | None = None

    def main(self) -> list[Trial]:
        """The trials its result is made of."""
        return [t for a in self.arms for t in a.main or []]

    def trials(self) -> list[Trial]:
        """All its trials, tuning ones first within an arm."""
        return [t for a in self.arms for t in [*a.tuning, *(a.main or [])]]


def middle_first(n: int) -> list[int]:
    """0 to n - 1 by halving: the middle, the middles of both sides, and so on."""
    order, parts = [], [(0, n)]
    for low, high in parts:
        if low < high:
            middle = (low + high) // 2
            order.append(middle)
            parts += [(low, middle), (middle + 1, high)]
    return order


def headline(error: str) -> str:
    """The line of a worker's error that says what happened: Ray's memory monitor's own, else the last."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    said = [line for line in lines if "running low on memory" in line]
    return (said or lines[-1:] or ["no message"])[0]
