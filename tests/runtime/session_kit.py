"""Sweeps by Tune with a trainable of the test's own, and the jobs they train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drill_kit import GQA, job, rates

from fabric.job.load import load_job
from fabric.runtime.worker import fabric_trial
from fabric.store import driver_lock
from fabric.sweeping import Caches, Silent, new_study, out_root


class Heard(Silent):
    """Keeps what a sweep tells."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, str]] = []
        self.order: list[str] = []

    def started(self, task: Any) -> None:
        self.order.append(task.trial.id)

    def ended(self, task: Any, error: str | None) -> None:
        if error:
            self.errors.append((task.trial.id, error))


def tune_sweep(body: dict[str, Any], out: Path | str, trainable: Any = fabric_trial, slots: int = 1) -> Any:
    """`fabric.sweep` with a trainable of the test's own; the study and what was heard of it."""
    from fabric.runtime.tune import run_study

    loaded = load_job(body)
    root = out_root(loaded, out)
    heard = Heard()
    with driver_lock(root) as objects:
        study = new_study(loaded, root, out, objects)
        caches = Caches(loaded, out, heard)
        options = {"slots": slots, "cpus": 1, "gpus": 0, "root": root, "progress": heard, "caches": caches}
        assert run_study(study, trainable=trainable, **options)
    return study, heard


def one_way(folder: Path, arms: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """A job that trains some arms with one seed each, in the order given."""
    search = {"mode": "grid", "seeds": 1, "axes": [{"arms": arms}]}
    return job(folder, steps=12, search=search, **options)


MLA = {"kind": "mla", "n_heads": 4, "kv_latent_dim": 16, "qk_nope_dim": 8, "qk_rope_dim": 4, "v_head_dim": 8}
ARMS = [
    {"name": "mha"},
    {"name": "gqa", "set": GQA},
    {"name": "mla", "set": {"model.mixer": MLA}},
    {"name": "qk_norm", "set": {"model.mixer.qk_norm": "head"}},
    {"name": "window", "set": {"model.mixer.window": 8}},
    {"name": "post", "set": {"model.norm_placement": "post"}},
    {"name": "bf16", "set": {"train.precision": "bf16"}},
    {"name": "wide", "set": {"model.d_model": 48, "model.ffn": {"kind": "swiglu", "d_ff": 96}}},
    {"name": "three", "set": {"model.n_layers": 3}},
    {"name": "rate", "set": {"train.optimizer.lr": 1e-2}},
]


def tuning_job(folder: Path, scheduler: dict[str, Any]) -> dict[str, Any]:
    """Two arms, four rates each on one tuning seed."""
    search = {
        "mode": "grid",
        "seeds": 2,
        "tuning_seeds": 1,
        "axes": [{"arms": ARMS[:2]}, rates(1e-5, 1e-2, 1e-3, 1e-4)],
        "scheduler": scheduler,
    }
    return job(folder, steps=24, search=search)
