"""From one trial's end to the next trial's first step on a warm actor, and the same without Ray."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from fabric.bench.measure import Figure, Measured, Sample, Setting
from fabric.bench.work import (
    attempts,
    ended_at,
    first_metric_at,
    job,
    prepared_spec,
    scratch,
    seeds_of_one_arm,
)

STEPS = 4


def run(setting: Setting) -> Measured:
    """One trial at a time; a trial evaluates after its first step, so that the step's time is on disk.

    The time includes what the next trial does up to there: building the model, the step, one short evaluation.
    """
    gaps = {"ray": _gaps(setting, "tune"), "inline": _gaps(setting, "inline")}
    limit = ("<=", 0.5)
    note = "end of a trial to the next one's first step, its row on disk"
    return Measured({"gap": Figure(gaps["ray"].median, "s", gaps, limit, note)}, "1")


def _gaps(setting: Setting, runner: Literal["tune", "inline"]) -> Sample:
    from fabric.sweeping import sweep

    with scratch(setting, "warm") as name:
        body = job(
            name,
            steps=STEPS,
            search=seeds_of_one_arm(setting.repeats + 1),
            quick=setting.quick,
            evaluate={"times": STEPS, "val_tokens": 64},
            resources={"max_concurrent": 1},
        )
        prepared_spec(body, setting)
        end = sweep(body, out=setting.out, runner=runner)
        if end.failed:
            raise RuntimeError(f"trials failed: {', '.join(end.failed)}")
        pairs = pairwise(attempts(end.root))
        return Sample(tuple(first_metric_at(after) - ended_at(before) for before, after in pairs))
