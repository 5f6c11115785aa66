"""An eight-trial sweep against the same trials in plain processes, after the first metric; start-up apart."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping
from typing import Any

from fabric.bench.measure import Figure, Measured, Sample, Setting, in_turn, ratio
from fabric.bench.work import (
    FirstStep,
    attempts,
    first_metric_at,
    job,
    prepared_spec,
    scratch,
    seeds_of_one_arm,
    step_seconds,
)
from fabric.planning.machine import cpu_count
from fabric.store import Place

N_TRIALS = 8
TRIAL_SECONDS, QUICK_SECONDS = 66.0, 1.0


def run(setting: Setting) -> Measured:
    """The clock of each side runs from its first metric to its end, test split read and processes gone."""
    n = 2 if setting.quick else N_TRIALS
    probe = job("probe", steps=1000, search=seeds_of_one_arm(1), quick=setting.quick)
    one_step = step_seconds(*prepared_spec(probe, setting))
    seconds = QUICK_SECONDS if setting.quick else TRIAL_SECONDS
    n_steps = max(8, round(seconds / one_step))
    starts: list[float] = []

    def body(name: str) -> dict[str, Any]:
        return job(
            name, steps=n_steps, search=seeds_of_one_arm(n), quick=setting.quick, evaluate={"times": 16}
        )

    def ours() -> float:
        with scratch(setting, "overhead") as name:
            wall, start = _sweep(body(name), setting)
            starts.append(start + one_step)
            return wall

    def plain() -> float:
        with scratch(setting, "overhead") as name:
            return _plain(body(name), setting)

    sides = in_turn({"sweep": ours, "plain processes": plain}, setting.repeats)
    start = Sample(tuple(starts))
    figures = {
        "wall after the first metric": ratio(sides, "sweep", "plain processes", ("<=", 1.05)),
        "start-up": Figure(start.median, "s", {"to the first step": start}, ("<=", 15.0)),
    }
    extra = {"n_trials": n, "n_steps": n_steps, "trial_seconds": n_steps * one_step, "at_once": cpu_count()}
    return Measured(figures, "1 a trial", extra)


def _sweep(body: Mapping[str, Any], setting: Setting) -> tuple[float, float]:
    """Seconds from the first metric to the return of `sweep`, and from its call to the first step."""
    from fabric.sweeping import sweep

    began = time.time()
    with FirstStep(setting.out / body["name"]) as first:
        end = sweep(body, out=setting.out)
    over = time.time()
    if end.failed:
        raise RuntimeError(f"trials failed: {', '.join(end.failed)}")
    return over - _first_metric(end.root), first.at - began


def _plain(body: Mapping[str, Any], setting: Setting) -> float:
    """Seconds from the first metric until as many plain processes have trained the same trials."""
    from fabric.job.load import load_job
    from fabric.sweeping import cache_root, new_study, out_root, task_body

    loaded = load_job(body)
    root = out_root(loaded, setting.out)
    study = new_study(loaded, root, setting.out)
    tasks = []
    while not isinstance(task := study.next_task(), str):
        tasks.append(task_body(study, task, cache=str(cache_root(setting.out)), invocation=0, source_hash=""))
    context = multiprocessing.get_context("spawn")
    n = min(cpu_count(), len(tasks))
    processes = [context.Process(target=train_all, args=(tasks[i::n],)) for i in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    over = time.time()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"plain processes ended with {[p.exitcode for p in processes]}")
    return over - _first_metric(root)


def train_all(tasks: list[dict[str, Any]]) -> None:
    """What a plain process does: train its trials one after the other, then read their test split."""
    from fabric.runtime.worker import perform
    from fabric.train.directive import keep_going

    for kind in ("train", "test"):
        for task in tasks:
            perform({**task, "kind": kind}, keep_going)


def _first_metric(root: Place) -> float:
    return min(first_metric_at(attempt) for attempt in attempts(root))
