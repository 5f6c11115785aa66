"""From a study's records to the rows the table is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fabric.analysis.rates import lr_sensitivity
from fabric.analysis.table import Point, TrialRow
from fabric.store import FINISHED, STOPPED, Store, TrialRecord


def study_rows(store: Store, study: str) -> tuple[list[TrialRow], dict[str, str], list[dict[str, Any]]]:
    """All trials of a study, the baseline of each phase, and the phases' decisions in order."""
    rows: list[TrialRow] = []
    baselines: dict[str, str] = {}
    decisions = []
    index = 0
    for index in range(MOST_PHASES):
        plan = store.study(study, f"plan-{index}")
        if plan is None:
            continue  # a phase whose condition did not hold leaves a gap
        baselines[plan["phase"]] = plan["baseline"]
        for i, arm in enumerate(plan["arms"]):
            rate = store.study(study, f"rate-{index}-{i}") or {}
            rows += _arm_rows(store, study, plan["phase"], arm, rate)
        decision = store.study(study, f"decision-{index}")
        if decision is not None:
            decisions.append(decision)
    return rows, baselines, decisions


MOST_PHASES = 64


def _arm_rows(
    store: Store, study: str, phase: str, arm: Mapping[str, Any], rate: Mapping[str, Any]
) -> list[TrialRow]:
    rows = [_row(store, study, phase, arm, t, "tuning") for t in arm["tuning"]]
    sensitivity = _sensitivity(store, rows)
    for trial in rate.get("trials", ()):
        row = _row(store, study, phase, arm, trial, "main")
        rows.append(_with(row, sensitivity))
    return rows


def _row(
    store: Store, study: str, phase: str, arm: Mapping[str, Any], trial: Mapping[str, Any], role: Any
) -> TrialRow:
    record = store.trial(trial["id"])
    status, spec = record.status(), record.spec() or {}
    state, reason = "running", None
    metrics: dict[str, Any] = {}
    if status is not None:
        state, reason = status.state, status.reason
        metrics = {k: v for k, v in (status.final or {}).items() if isinstance(v, int | float) or v is None}
    stops = [d for d in record.decisions(study) if d.get("stop")]
    if state != FINISHED and stops:
        state, reason = STOPPED, stops[-1]
    elif state == STOPPED:
        state = "running"  # interrupted or paused: it goes on with the next run
    for key in record.evaluation_keys():
        metrics |= {k: v for k, v in (record.evaluation(key) or {}).items() if k.startswith("test_")}
    lr = spec.get("train", {}).get("optimizer", {}).get("lr")
    return TrialRow(
        phase=phase,
        arm=arm["name"],
        seed=trial["seed"],
        role=role,
        lr=lr,
        state=state,
        reason=reason,
        metrics=metrics,
        n_params=arm["n_params"],
        state_bytes=arm["state_bytes"],
        flops_per_token=arm["flops_per_token"],
        history=_history(record),
    )


def _history(record: TrialRecord) -> list[Point]:
    return [
        (r["tokens"], r["flops"], r["seconds"], r["val_loss"])
        for r in record.metrics()
        if r.get("val_loss") is not None and r.get("flops") is not None
    ]


def _sensitivity(store: Store, rows: list[TrialRow]) -> float | None:
    """The arm's sensitivity to the learning rate over its tuning trials; None below five rates."""
    losses = {r.lr: r.metrics.get("val_loss") for r in rows if r.lr is not None and r.state == FINISHED}
    if len(losses) < len({r.lr for r in rows}):
        return None
    first = [r.history[0][3] for r in rows if r.history]
    return lr_sensitivity(losses, max(first)) if first else None


def _with(row: TrialRow, sensitivity: float | None) -> TrialRow:
    from dataclasses import replace

    return (
        row if sensitivity is None else replace(row, metrics={**row.metrics, "lr_sensitivity": sensitivity})
    )
