"""From axes to arms: every combination, a random sample, or one thing at a time."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fabric.job.document import Mark
from fabric.job.load import Job, Override
from fabric.job.schema import AxisConfig, PhaseConfig


@dataclass(frozen=True)
class Arm:
    """One thing that is compared: a name and the overrides that make it, laid on the base in order."""

    name: str
    overrides: tuple[Override, ...] = ()

    def then(self, other: Arm) -> Arm:
        """This arm with another one's overrides on top."""
        name = " + ".join(n for n in (self.name, other.name) if n)
        return Arm(name, self.overrides + other.overrides)


Place = tuple[str | int, ...]


def choices(job: Job, axis: AxisConfig, place: Place) -> list[Arm]:
    """The arms of one axis; `place` is where the axis stands in the document (for error messages)."""
    if axis.arms is not None:
        found = []
        for i, arm in enumerate(axis.arms):
            at: Place = (*place, "arms", i, "set")
            overrides = tuple(
                Override(path, value, job.document.mark((*at, path)) or Mark("job"))
                for path, value in arm.set.items()
            )
            found.append(Arm(arm.name, overrides))
        return found
    key = str(axis.path).split(".")[-1]
    return [
        Arm(f"{key}={label(value)}", (Override(str(axis.path), value, _mark(job, (*place, "values", i))),))
        for i, value in enumerate(axis.values or [])
    ]


def _mark(job: Job, place: Place) -> Mark:
    return job.document.mark(place) or Mark("job")


def label(value: Any) -> str:
    """A value as part of a name: short, without spaces."""
    if isinstance(value, dict):
        return str(
            value.get("name") or value.get("kind") or "_".join(f"{k}={label(v)}" for k, v in value.items())
        )
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).replace(" ", "")


def product(axes: Sequence[list[Arm]]) -> list[Arm]:
    """Every combination of the axes' arms, the last axis turning fastest."""
    combined = []
    for combination in itertools.product(*axes):
        arm = Arm("")
        for part in combination:
            arm = arm.then(part)
        combined.append(arm)
    return combined


def one_way(axes: Sequence[list[Arm]]) -> list[Arm]:
    """The base as it is, then every axis's values one at a time."""
    return [Arm("base"), *itertools.chain.from_iterable(axes)]


def arms_of_phase(job: Job, index: int, phase: PhaseConfig) -> list[Arm]:
    """A phase's own arms, before what earlier phases adopted is laid below them."""
    axes = [choices(job, a, ("search", "phases", index, "axes", i)) for i, a in enumerate(phase.axes)]
    return one_way(axes) if phase.mode == "oneway" else product(axes)


def arms_of_search(job: Job) -> list[Arm]:
    """The arms of a search without phases."""
    search = job.config.search
    places = [(a, ("search", "axes", i)) for i, a in enumerate(search.axes) if a.role == "experiment"]
    if not places:
        return [Arm("base")]
    if search.mode == "random":
        return _sampled(job, places, search.n_samples or 1, search.sample_seed)
    axes = [choices(job, a, p) for a, p in places]
    return one_way(axes) if search.mode == "oneway" else product(axes)


def nuisance_points(job: Job) -> list[Arm]:
    """The combinations of the nuisance axes; one empty point when there are none."""
    search = job.config.search
    axes = [choices(job, a, ("search", "axes", i)) for i, a in enumerate(search.axes) if a.role == "nuisance"]
    return product(axes) if axes else [Arm("")]


def _sampled(job: Job, places: list[tuple[AxisConfig, Place]], n: int, seed: int) -> list[Arm]:
    """`n` distinct random combinations (fewer only when there are no more), the same for the same seed."""
    rng = random.Random(seed)
    listed = [[] if a.low is not None else choices(job, a, p) for a, p in places]
    n_possible = math.inf if any(a.low is not None for a, _ in places) else math.prod(len(c) for c in listed)
    arms: dict[str, Arm] = {}
    while len(arms) < min(n, n_possible):
        arm = Arm("")
        for (axis, place), options in zip(places, listed, strict=True):
            arm = arm.then(rng.choice(options) if options else _drawn(job, axis, place, rng))
        arms.setdefault(arm.name, arm)
    return list(arms.values())


def _drawn(job: Job, axis: AxisConfig, place: Place, rng: random.Random) -> Arm:
    low, high = float(axis.low or 0), float(axis.high or 0)
    if axis.scale == "log":
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        value = rng.uniform(low, high)
    value = float(f"{value:.4g}")
    key = str(axis.path).split(".")[-1]
    return Arm(f"{key}={label(value)}", (Override(str(axis.path), value, _mark(job, (*place, "low"))),))
