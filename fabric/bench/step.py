"""Tokens a second of a training step of the ablation's base model, by threads and precision."""

from __future__ import annotations

from typing import Any

from fabric.bench.measure import Figure, Measured, Sample, Setting, in_turn
from fabric.bench.work import engine, job, prepared_spec, seeds_of_one_arm, timed
from fabric.planning.machine import cpu_count

STEPS, QUICK_STEPS = 5, 1  # a measurement is the mean of these
PROFILE_ROWS = 20


def run(setting: Setting) -> Measured:
    """Every combination is an engine of its own, warm; their steps are timed in turn."""
    import torch

    n = QUICK_STEPS if setting.quick else STEPS
    engines = {}
    for precision in ("fp32", "bf16"):
        body = job(
            "step",
            steps=1000,
            search=seeds_of_one_arm(1),
            quick=setting.quick,
            train={"precision": precision},
        )
        spec, cache = prepared_spec(body, setting)
        for threads in sorted({1, min(2, cpu_count())}):
            label = f"{precision}, {threads} thread{'s' * (threads > 1)}"
            engines[label] = (engine(spec.model_copy(update={"threads": threads}), cache), threads)

    def speed(label: str) -> float:
        made, threads = engines[label]
        torch.set_num_threads(threads)
        return n * made.tokens_per_step / timed(lambda: [made.step() for _ in range(n)])

    sides = in_turn({label: (lambda label=label: speed(label)) for label in engines}, setting.repeats)  # type: ignore[misc]
    torch.set_num_threads(1)
    first = next(iter(engines.values()))[0]
    flops = first.flops_per_token
    figures = {label: _figure(label, sides, flops) for label in sides}
    return Measured(figures, "stated with each figure", {"profile": profile(first, n)})


def _figure(label: str, sides: dict[str, Sample], flops_per_token: float) -> Figure:
    speed = sides[label].median
    return Figure(
        speed, "tokens/s", {label: sides[label]}, note=f"{speed * flops_per_token / 1e9:.1f} GFLOP/s"
    )


def profile(made: Any, n: int) -> list[dict[str, Any]]:
    """Where a step's time goes by operator, most first; milliseconds and calls a step."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(n):
            made.step()
    rows = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)[:PROFILE_ROWS]
    return [
        {"operator": e.key, "self_ms": e.self_cpu_time_total / n / 1e3, "calls": e.count / n} for e in rows
    ]
