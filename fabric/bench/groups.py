"""Trials of two DeepSpeed workers, ZeRO-2: our worker groups against a `TorchTrainer` for each trial."""

from __future__ import annotations

import tempfile
from typing import Any

from fabric.bench.measure import Figure, Measured, Sample, Setting
from fabric.bench.process import call
from fabric.bench.work import job, prepared_spec, scratch, seeds_of_one_arm

RESOURCES = {"workers": 2, "engine": "deepspeed", "zero_stage": 2}
N_TRIALS, QUICK_TRIALS = 6, 2
STEPS = 8  # of a trial that may be stopped half way
RATES = (4e-3, 1e-6, 2e-6, 3e-6, 4e-6)
LIMITS = {
    "first group": (25.0, "from the first trial's hand-over to its first step done and evaluated"),
    "further trial": (
        1.0,
        "from a trial's hand-over to its first step done and evaluated, on the warm group",
    ),
    "stop": (2.0, "from the report ASHA stops a trial at to the next trial's hand-over taken by the group"),
}


def run(setting: Setting) -> Measured:
    """Every repeat starts a Ray of its own on either side; times are of whole trials of one step, walls."""
    found: dict[str, list[float]] = {name: [] for name in (*LIMITS, "stock trial")}
    n = QUICK_TRIALS if setting.quick else N_TRIALS
    for number in range(setting.repeats):
        setting.say(f"worker groups, {number + 1} of {setting.repeats}")
        for name, seconds in _ours(setting, n).items():
            found[name] += seconds
        setting.say(f"a TorchTrainer a trial, {number + 1} of {setting.repeats}")
        found["stock trial"] += _stock(setting, 2)
    samples = {name: Sample(tuple(values)) for name, values in found.items()}
    figures = {
        name: Figure(samples[name].median, "s", {name: samples[name]}, ("<=", limit), note)
        for name, (limit, note) in LIMITS.items()
    }
    sides = {name: samples[name] for name in ("further trial", "stock trial")}
    faster = samples["stock trial"].median / samples["further trial"].median
    figures["stock over fabric"] = Figure(faster, "x", sides, note="a trial of one step, start to end")
    return Measured(figures, "1 a worker", {"resources": RESOURCES})


def _ours(setting: Setting, n: int) -> dict[str, list[float]]:
    with scratch(setting, "groups") as short, scratch(setting, "groups") as stopped:
        once = {"times": 1, "val_tokens": 64}
        given: dict[str, Any] = {"resources": {**RESOURCES, "max_concurrent": 1}, "quick": setting.quick}
        asha = {"kind": "asha", "reduction_factor": 2}
        rates = {"path": "train.optimizer.lr", "values": list(RATES), "role": "nuisance"}
        search = {"mode": "grid", "axes": [{"arms": [{"name": "one"}]}, rates], "seeds": 1, "scheduler": asha}
        bodies = {
            "short": job(short, steps=1, search=seeds_of_one_arm(n), evaluate=once, **given),
            "stopped": job(stopped, steps=STEPS, search=search, evaluate=once, **given),
        }
        for body in bodies.values():
            prepared_spec(body, setting)
        task = {**bodies, "out": str(setting.out)}
        found: dict[str, list[float]] = call("fabric.runtime.probe:probe_groups", task)
    return found


def _stock(setting: Setting, n: int) -> list[float]:
    """Seconds a trial of the stock way, groups of two workers without DeepSpeed (its import left to ours)."""
    body = job("probe", steps=1, search=seeds_of_one_arm(1), quick=setting.quick)
    spec, cache = prepared_spec(body, setting)
    task: dict[str, Any] = {
        "model": spec.model.model_dump(mode="json"),
        "cache": str(cache.path),
        "seq_len": spec.data.seq_len,
        "batch_size": spec.train.batch_size // 2,
        "n_steps": 1,
        "lr": spec.train.optimizer.lr,
        "val_tokens": 64,
        "n_trials": n,
        "workers": 2,
    }
    with tempfile.TemporaryDirectory() as folder:
        done = call("fabric.runtime.stock:run_stock", {"task": {**task, "storage": folder}})
    return [done["seconds"] / n]
