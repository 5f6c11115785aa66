"""The share of a step spent waiting for data, the loader's speed, and what resuming far into a run costs."""

from __future__ import annotations

import time
from typing import Any

from fabric.bench.measure import Figure, Measured, Sample, Setting, in_turn, ratio
from fabric.bench.work import engine, job, prepared_spec, seeds_of_one_arm

EARLY, LATE = 10, 10**6


def run(setting: Setting) -> Measured:
    """Width 64, one thread: the smallest model waits longest for its data."""
    body = job("data", steps=1000, search=seeds_of_one_arm(1), quick=setting.quick)
    spec, cache = prepared_spec(body, setting)
    warm = engine(spec, cache)
    steps, reads = (3, 20) if setting.quick else (30, 500)
    shares = Sample(tuple(_share(warm, steps) for _ in range(setting.repeats)))
    speeds = Sample(tuple(_loader_speed(warm, reads) for _ in range(setting.repeats)))
    sides = in_turn(
        {
            f"step {EARLY}": lambda: _first_batch(warm.batches, EARLY),
            f"step {LATE}": lambda: _first_batch(warm.batches, LATE),
        },
        setting.repeats,
    )
    figures = {
        "share of a step": Figure(shares.median, "", {"share": shares}, ("<=", 0.01)),
        "loader": Figure(speeds.median, "tokens/s", {"loader": speeds}),
        "resume": ratio(
            sides, f"step {LATE}", f"step {EARLY}", ("<=", 3.0),
            "seconds of the first batch read, with nothing remembered: O(1) in the step; "
            f"the steps differ by {LATE // EARLY:,}x",
        ),
    }  # fmt: skip
    return Measured(figures, "1")


def _share(warm: Any, steps: int) -> float:
    state = warm.state
    data, seconds = state.data_seconds, state.seconds
    for _ in range(steps):
        warm.step()
    return float((state.data_seconds - data) / (state.seconds - seconds))


def _loader_speed(warm: Any, reads: int) -> float:
    began = time.perf_counter()
    for step in range(reads):
        warm.batches.batch(step)
    return reads * warm.tokens_per_step / (time.perf_counter() - began)


def _first_batch(batches: Any, step: int) -> float:
    from fabric.data import order

    order._run.cache_clear()
    order._round_keys.cache_clear()
    began = time.perf_counter()
    batches.batch(step)
    return time.perf_counter() - began
