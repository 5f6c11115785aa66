"""What a measurement is: samples of each side taken in turn, a figure, its target, and the machine it is of."""

from __future__ import annotations

import importlib.metadata
import operator
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "numpy", "transformers", "datasets", "tokenizers")
_HOLDS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Setting:
    """How often each side is measured, where records go, whether the smallest size is asked for, which parts, and
    who is told how far it is.
    """

    repeats: int
    out: Path
    quick: bool = False
    only: tuple[str, ...] = ()
    say: Callable[[str], None] = lambda _line: None


@dataclass(frozen=True)
class Sample:
    """Repeated measurements of one side."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_dict(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "n": len(self.values),
            "values": list(self.values),
        }


@dataclass(frozen=True)
class Figure:
    """One number of a bench, with the sides it comes from and, where the README claims one, its target.

    `target` is ("<=" or ">=", limit) in `unit`.
    """

    value: float
    unit: str
    sides: Mapping[str, Sample] = field(default_factory=dict)
    target: tuple[str, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.target is None else bool(_HOLDS[self.target[0]](self.value, self.target[1]))

    def as_dict(self) -> dict[str, Any]:
        body: dict[str, Any] = {"value": self.value, "unit": self.unit}
        if self.target is not None:
            body |= {"target": f"{self.target[0]} {self.target[1]:g}", "met": self.met}
        if self.note:
            body["note"] = self.note
        return {**body, "sides": {name: sample.as_dict() for name, sample in self.sides.items()}}


@dataclass(frozen=True)
class Measured:
    """What a bench returns: its figures, the threads each side computed with, and anything else worth keeping."""

    figures: Mapping[str, Figure]
    threads: str
    extra: Mapping[str, Any] = field(default_factory=dict)


def in_turn(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Sample]:
    """Measure every side `repeats` times, one after the other, each round in the opposite order of the last.

    What else the machine does, and what it remembers, then falls on all sides alike.
    """
    values: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            values[name].append(sides[name]())
    return {name: Sample(tuple(found)) for name, found in values.items()}


def ratio(
    sides: Mapping[str, Sample],
    over: str,
    under: str,
    target: tuple[str, float] | None = None,
    note: str = "",
) -> Figure:
    """The ratio of two sides' medians."""
    return Figure(sides[over].median / sides[under].median, "x", sides, target, note)


def finish(name: str, about: str, setting: Setting, measured: Measured) -> dict[str, Any]:
    """A bench's whole result as plain data."""
    met = [f.met for f in measured.figures.values() if f.met is not None]
    return {
        "bench": name,
        "about": about,
        "quick": setting.quick,
        "repeats": setting.repeats,
        "met": all(met) if met else None,
        "figures": {key: figure.as_dict() for key, figure in measured.figures.items()},
        "threads": measured.threads,
        "machine": machine(),
        "versions": versions(PACKAGES),
        **measured.extra,
    }


def machine() -> dict[str, Any]:
    """Processor, the CPUs this process may use, and memory."""
    from fabric.planning.machine import cpu_count

    memory = _first("/proc/meminfo", "MemTotal")
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cpus": cpu_count(),
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "system": platform.platform(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Python's version and those of installed packages."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _first(path: str, key: str) -> str | None:
    """The value of the first line of a `key : value` file of Linux's."""
    try:
        with open(path) as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(key)), None)
    except OSError:
        return None
