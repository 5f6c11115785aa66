"""Short trials by `fabric sweep` against a stock Ray program: a `TorchTrainer` in every trial of a `Tuner`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from fabric.bench.measure import Figure, Measured, Setting, in_turn
from fabric.bench.process import python
from fabric.bench.work import job, prepared_spec, scratch, seeds_of_one_arm, timed

N_TRIALS, QUICK_TRIALS, STEPS = 12, 2, 8


def run(setting: Setting) -> Measured:
    """Each side is one process from its start to its end, Ray's included; the trials differ in their seed."""
    n = QUICK_TRIALS if setting.quick else N_TRIALS
    probe = job("probe", steps=STEPS, search=seeds_of_one_arm(1), quick=setting.quick)
    spec, cache = prepared_spec(probe, setting)
    task = {
        "model": spec.model.model_dump(mode="json"),
        "cache": str(cache.path),
        "seq_len": spec.data.seq_len,
        "batch_size": spec.train.batch_size,
        "n_steps": STEPS,
        "lr": spec.train.optimizer.lr,
        "val_tokens": spec.evaluate.val_tokens,
        "n_trials": n,
        "workers": 1,
    }

    def ours() -> float:
        with scratch(setting, "stock") as name, tempfile.TemporaryDirectory() as folder:
            body = job(
                name, steps=STEPS, search=seeds_of_one_arm(n), quick=setting.quick, evaluate={"times": 1}
            )
            file = Path(folder, "job.yaml")
            file.write_text(json.dumps(body))
            return _process("fabric.cli", "sweep", str(file), "--out", str(setting.out))

    def stock() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return _process("fabric.runtime.stock", json.dumps({**task, "storage": folder}))

    sides = in_turn({"fabric": ours, "stock": stock}, setting.repeats)
    faster = sides["stock"].median / sides["fabric"].median
    note = f"walls of {n} trials of {STEPS} steps, Ray's start and end on both sides"
    a_trial = {name: round(side.median / n, 3) for name, side in sides.items()}
    figures = {"stock over fabric": Figure(faster, "x", sides, (">=", 10.0), note)}
    return Measured(figures, "1 a trial", {"n_trials": n, "seconds_a_trial": a_trial})


def _process(module: str, *arguments: str) -> float:
    """Seconds of a Python process that calls a module's `main`."""
    code = f"from {module} import main; main()"
    with tempfile.TemporaryDirectory() as folder:
        return timed(lambda: python("-c", code, *arguments, cwd=folder))
