"""One, two and four workers a trial on this machine's cores: efficiency, exposed exchange, and a fitted ring model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from fabric.bench.measure import Figure, Measured, Sample, Setting
from fabric.bench.ranks import Ranks
from fabric.bench.training import OURS, Training, decoder
from fabric.planning.machine import cpu_count
from fabric.planning.machine_workers import Estimate, RingFit, Timed, fit, remember
from fabric.planning.parallel import GRADIENT_BYTES
from models import ModelConfig, n_params

WORKERS = (1, 2, 4)
WIDTHS, LAYERS, TOKENS, VOCABULARY, BATCH = (64, 128, 192, 256), 4, 128, 1024, 8
BYTES = (2**10, 2**16, 2**20, 2**22, 2**24)
TIMES = 7  # steps or sums behind each value
QUICK_WORKERS, QUICK_WIDTHS, QUICK_BYTES, QUICK_TIMES = (1, 2), (32, 64, 128), (2**10, 2**16, 2**20), 2

Cells = dict[tuple[str | int, int], list[float]]  # by training or bytes, and workers


def run(setting: Setting) -> Measured:
    """The same global batch on every number of workers, in turn; each is a process with one thread over gloo.

    Four workers on two cores share them: the fit divides a step's computing by the cores there are. It is kept for
    `fabric plan` (not a quick one).
    """
    counts = QUICK_WORKERS if setting.quick else WORKERS
    widths = QUICK_WIDTHS if setting.quick else WIDTHS
    trainings = {f"width {w}": _training(w) for w in widths}
    steps, waits, sums = _measured(setting, counts, trainings)
    cores = cpu_count()
    n_bytes = {
        k: GRADIENT_BYTES * n_params(ModelConfig.model_validate(t.model)) for k, t in trainings.items()
    }
    found = fit(
        [Timed(str(k), n_bytes[str(k)], n, Sample(tuple(v)).median) for (k, n), v in steps.items()], cores
    )
    alone = fit([Timed(None, int(b), n, Sample(tuple(v)).median) for (b, n), v in sums.items()], cores)
    figures = {**_efficiencies(steps, waits), **_links("steps", found), **_links("all-reduces alone", alone)}
    extra: dict[str, Any] = {"gradient_bytes": n_bytes, "fit": found.as_dict(), "fit_alone": alone.as_dict()}
    if not setting.quick:
        extra["files"] = [str(remember(found))]
    shared = f"; up to {max(counts)} workers share {cores} cores" if max(counts) > cores else ""
    return Measured(figures, f"1 a worker{shared}", extra)


def _training(width: int) -> Training:
    return Training(OURS, "fp32", False, decoder(width, LAYERS, TOKENS, VOCABULARY), BATCH, TOKENS, 1)


def _measured(
    setting: Setting, counts: tuple[int, ...], trainings: Mapping[str, Training]
) -> tuple[Cells, Cells, Cells]:
    """Seconds of steps, of their exposed exchange and of all-reduces alone; numbers of workers in turn."""
    steps: Cells = {}
    waits: Cells = {}
    sums: Cells = {}
    times, sizes = (QUICK_TIMES, QUICK_BYTES) if setting.quick else (TIMES, BYTES)
    with contextlib.ExitStack() as stack:
        groups = [stack.enter_context(Ranks(n, trainings)) for n in counts]
        for number in range(setting.repeats):
            for group in groups[:: 1 if number % 2 == 0 else -1]:
                for name in trainings:
                    got = group.ask({"train": name, "times": times})
                    steps.setdefault((name, group.world), []).append(got["seconds"])
                    if "exposed" in got:
                        waits.setdefault((name, group.world), []).append(got["exposed"])
                for b in sizes if group.world > 1 else ():
                    got = group.ask({"bytes": b, "times": times})
                    sums.setdefault((b, group.world), []).append(got["seconds"])
                setting.say(f"round {number + 1} of {setting.repeats}: {group.world} at work")
    return steps, waits, sums


def _efficiencies(steps: Cells, waits: Cells) -> dict[str, Figure]:
    """T1 / (n Tn) and the exposed share of a step, by training and workers."""
    figures = {}
    for (name, n), seconds in steps.items():
        if n == 1:
            continue
        one, many = (_milliseconds(v) for v in (steps[name, 1], seconds))
        sides = {"1 worker, ms a step": one, f"{n} workers": many}
        figures[f"{name}: {n} workers, strong efficiency"] = Figure(one.median / (n * many.median), "", sides)
        wait = _milliseconds(waits[name, n])
        figures[f"{name}: {n} workers, exposed share"] = Figure(
            wait.median / many.median, "", {"rank 0's wait, ms": wait}
        )
    return figures


def _milliseconds(seconds: list[float]) -> Sample:
    return Sample(tuple(s * 1e3 for s in seconds))


def _links(what: str, found: RingFit) -> dict[str, Figure]:
    """alpha and beta with their intervals."""

    def figure(estimate: Estimate, scale: float, unit: str) -> Figure:
        value, low, high = (scale * v for v in (estimate.value, estimate.low, estimate.high))
        return Figure(
            value,
            unit,
            note=f"95 % interval [{low:.3g}, {high:.3g}]; the fit is {found.worst:.0%} off at most",
        )

    return {
        f"alpha of {what}": figure(found.alpha, 1e6, "us/message"),
        f"beta of {what}": figure(found.beta, 1e9, "ns/byte"),
    }
