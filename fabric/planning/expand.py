"""From axes to arms: every combination, a random sample, or one thing at a time."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fabric.job.document import Mark
from fabric.job.errors import explain
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
MOST_ARMS = 2000


def choices(job: Job, axis: AxisConfig, place: Place, key: str) -> list[Arm]:
    """The arms of one axis, named `key=value`; `place` is where the axis stands in the document (for errors)."""
    if axis.arms is not None:
        found = []
        for i, arm in enumerate(axis.arms):
            at: Place = (*place, "arms", i, "set")
            overrides = tuple(Override(p, v, _mark(job, (*at, p))) for p, v in arm.set.items())
            found.append(Arm(arm.name, overrides))
        return found
    names = _labels(axis.values or [])
    return [
        Arm(f"{key}={name}", (Override(str(axis.path), value, _mark(job, (*place, "values", i))),))
        for i, (name, value) in enumerate(zip(names, axis.values or []))
    ]


def _mark(job: Job, place: Place) -> Mark:
    return job.document.mark(place) or Mark("job")


def _keys(axes: Sequence[AxisConfig]) -> list[str]:
    """Each axis's name: the end of its path, as long as it takes to tell it from the other axes."""
    paths = [str(a.path).split(".") for a in axes]
    found = []
    for path in paths:
        n = next((n for n in range(1, len(path)) if sum(p[-n:] == path[-n:] for p in paths) == 1), len(path))
        found.append(".".join(path[-n:]))
    return found


def _labels(values: Sequence[Any]) -> list[str]:
    """The values as parts of names; longer where the short ones are the same."""
    short = [label(v) for v in values]
    if len(set(short)) == len(short):
        return short
    long = [_long_label(v) for v in values]
    return long if len(set(long)) == len(long) else [f"{name}#{i + 1}" for i, name in enumerate(short)]


def label(value: Any) -> str:
    """A value as part of a name: short, without spaces."""
    if isinstance(value, dict):
        named = value.get("name") or value.get("kind")
        return str(named) if named else _long_label(value)
    if isinstance(value, list):
        return ",".join(label(v) for v in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).replace(" ", "")


def _long_label(value: Any) -> str:
    if isinstance(value, dict):
        return "_".join(label(v) if k == "kind" else f"{k}={label(v)}" for k, v in value.items()) or "{}"
    return repr(value) if isinstance(value, float) else label(value)


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
    place: Place = ("search", "phases", index, "axes")
    return _combined(job, [(a, (*place, i)) for i, a in enumerate(phase.axes)], phase.mode, place)


def arms_of_search(job: Job) -> list[Arm]:
    """The arms of a search without phases."""
    search = job.config.search
    places = _axes(job, "experiment")
    if not places:
        return [Arm("base")]
    if search.mode == "random":
        return _sampled(job, places, search.n_samples or 1, search.sample_seed)
    return _combined(job, places, search.mode, ("search", "axes"))


def nuisance_points(job: Job) -> list[Arm]:
    """The combinations of the nuisance axes; one empty point when there are none."""
    return _combined(job, _axes(job, "nuisance"), "grid", ("search", "axes"))


def _axes(job: Job, role: str) -> list[tuple[AxisConfig, Place]]:
    axes = job.config.search.axes
    return [(a, ("search", "axes", i)) for i, a in enumerate(axes) if a.role == role]


def _choices(job: Job, places: Sequence[tuple[AxisConfig, Place]]) -> list[list[Arm]]:
    keys = _keys([a for a, _ in places])
    return [choices(job, a, p, key) for (a, p), key in zip(places, keys)]


def _combined(job: Job, places: Sequence[tuple[AxisConfig, Place]], mode: str, place: Place) -> list[Arm]:
    """The grid of some axes, or one way through them. Raises JobError for too many arms, or two of one name."""
    axes = _choices(job, places)
    n = 1 + sum(map(len, axes)) if mode == "oneway" else math.prod(map(len, axes))
    if n > MOST_ARMS:
        message = f"the axes make {n} arms; at most {MOST_ARMS} are allowed (mode random takes a sample)"
        raise explain(job.document, place, message)
    arms = one_way(axes) if mode == "oneway" else product(axes)
    names = [a.name for a in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise explain(job.document, place, f"two arms are called {twice!r}; give each another name")
    return arms


def _sampled(job: Job, places: Sequence[tuple[AxisConfig, Place]], n: int, seed: int) -> list[Arm]:
    """`n` distinct random combinations (fewer only when there are no more), the same for the same seed."""
    rng = random.Random(seed)
    keys = _keys([a for a, _ in places])
    listed = [[] if a.low is not None else choices(job, a, p, key) for (a, p), key in zip(places, keys)]
    ranged = any(a.low is not None for a, _ in places)
    n_possible = math.inf if ranged else math.prod(len(c) for c in listed)
    arms: dict[str, Arm] = {}
    misses = 0
    while len(arms) < min(n, n_possible) and misses < MOST_ARMS:  # a narrow range may hold fewer
        arm = Arm("")
        for (axis, place), key, options in zip(places, keys, listed, strict=True):
            arm = arm.then(rng.choice(options) if options else _drawn(job, axis, place, key, rng))
        misses = misses + 1 if arm.name in arms else 0
        arms.setdefault(arm.name, arm)
    return list(arms.values())


def _drawn(job: Job, axis: AxisConfig, place: Place, key: str, rng: random.Random) -> Arm:
    value = _between(axis.low or 0, axis.high or 0, axis.scale == "log", rng)
    return Arm(f"{key}={value!r}", (Override(str(axis.path), value, _mark(job, (*place, "low"))),))


def _between(low: float, high: float, log: bool, rng: random.Random) -> float:
    """A number of a range: an integer, ends included, where both bounds are integers; else of four digits."""
    if isinstance(low, int) and isinstance(high, int):
        if not log:
            return rng.randint(low, high)
        return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
    return float(f"{value:.4g}")
