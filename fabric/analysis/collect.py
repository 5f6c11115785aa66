"""From a study's records to the rows the table is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fabric.analysis.rates import lr_sensitivity
from fabric.analysis.table import Point, TrialRow
from fabric.analysis.workers import Ran
from fabric.store import FINISHED, STOPPED, Store, TrialRecord

MOST_PHASES = 64


@dataclass
class StudyRows:
    """All trials of a study; each phase's baseline, and decision where it is taken, in order; the overrides that
    lead to the last winner; what the user should know (rates at the edge of their grid, arms that are out)."""

    rows: list[TrialRow] = field(default_factory=list)
    baselines: dict[str, str] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    adopted: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def study_rows(store: Store, study: str, test_key: str = "") -> StudyRows:
    """What the store knows of a study. `test_key` names the reading of the test split that is the study's."""
    found = StudyRows()
    for index in range(MOST_PHASES):
        plan = store.study(study, f"plan-{index}")
        if plan is None:
            continue  # a phase whose condition did not hold leaves a gap
        phase = plan["phase"]
        decision = store.study(study, f"decision-{index}")
        found.baselines[phase] = plan["baseline"]
        for i, arm in enumerate(plan["arms"]):
            rate = store.study(study, f"rate-{index}-{i}") or {}
            rows = _arm_rows(store, study, phase, arm, rate, test_key)
            found.warnings += _mixed_numerics(phase, rows)
            found.rows += rows if decision is None else [_settled(r) for r in rows]
            if rate.get("warning"):
                found.warnings.append(f"{phase}/{arm['name']}: {rate['warning']}")
            if rate and rate.get("point") is None:
                found.warnings.append(f"{phase}/{arm['name']}: {rate.get('why')}; the arm is out")
        if decision is not None:
            found.decisions.append(decision)
            winner: Mapping[str, Any] = next((a for a in plan["arms"] if a["name"] == decision["winner"]), {})
            found.adopted = nested(winner.get("overrides", {}))
    return found


def _mixed_numerics(phase: str, rows: Sequence[TrialRow]) -> list[str]:
    """A warning where the runs a phase compares were trained under several fingerprints of numerics."""
    arms: dict[str, set[str]] = {}
    for row in rows:
        if row.role == "main" and row.numerics is not None:
            arms.setdefault(row.numerics, set()).add(row.arm)
    if len(arms) < 2:
        return []
    where = "; ".join(f"{numerics}: {', '.join(sorted(names))}" for numerics, names in sorted(arms.items()))
    return [f"{phase}: compares runs trained under different numerics ({where}); see --strict-numerics"]


def _settled(row: TrialRow) -> TrialRow:
    """A row of a decided phase: what has not ended by then was given up without a last word (a killed worker)."""
    return replace(row, state="failed", reason={"kind": "failed"}) if row.outcome == "running" else row


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides with each later one laid into an earlier mapping that holds its path."""
    out: dict[str, Any] = {}
    for path, value in overrides.items():
        keys = path.split(".")
        for n in range(len(keys) - 1, 0, -1):
            holder = out.get(".".join(keys[:n]))
            if isinstance(holder, dict) and n == len(keys) - 1:
                out[".".join(keys[:n])] = {**holder, keys[-1]: value}
                break
        else:
            out.pop(path, None)
            out[path] = value
    return out


def _arm_rows(
    store: Store, study: str, phase: str, arm: Mapping[str, Any], rate: Mapping[str, Any], test_key: str
) -> list[TrialRow]:
    rows = [_row(store, study, phase, arm, t, "tuning", test_key) for t in arm["tuning"]]
    main = [_row(store, study, phase, arm, t, "main", test_key) for t in rate.get("trials", ())]
    sensitivity = _sensitivity(store, rows, [t["id"] for t in arm["tuning"]])
    if sensitivity is not None:
        main = [replace(r, metrics={**r.metrics, "lr_sensitivity": sensitivity}) for r in main]
    return rows + main


def _row(
    store: Store,
    study: str,
    phase: str,
    arm: Mapping[str, Any],
    trial: Mapping[str, Any],
    role: Any,
    test_key: str,
) -> TrialRow:
    record = store.trial(trial["id"], trial.get("numerics"))
    status, spec = record.status(), record.spec() or {}
    state, reason = "running", None
    metrics: dict[str, Any] = {}
    if status is not None:
        state, reason = status.state, status.reason
        final = record.final(trial.get("evaluation"))
        if state == FINISHED and final is None:
            state = "running"  # it has ended, and is still to be measured as this study asks
        metrics = {k: v for k, v in (final or {}).items() if isinstance(v, int | float) or v is None}
    stops = [d for d in record.decisions(study) if d.get("stop")]
    if state != FINISHED and stops:
        state, reason = STOPPED, stops[-1]
    elif state == STOPPED:
        state = "running"  # interrupted or paused: it goes on with the next run
    lr = spec.get("train", {}).get("optimizer", {}).get("lr")
    return TrialRow(
        phase=phase,
        arm=arm["name"],
        seed=trial["seed"],
        role=role,
        lr=lr,
        state=state,
        reason=reason,
        metrics=metrics | _test_metrics(record, test_key),
        n_params=arm["n_params"],
        state_bytes=arm["state_bytes"],
        flops_per_token=arm["flops_per_token"],
        history=_history(record, metrics),
        numerics=record.fingerprint(status.attempt) if status is not None else None,
        ran=Ran.read(record, spec) if state == FINISHED and spec else None,
    )


def _test_metrics(record: TrialRecord, test_key: str) -> dict[str, Any]:
    """The reading of the test split under the study's key, or the only one there is; two are never mixed."""
    keys = [k for k in record.evaluation_keys() if k.startswith("test-")]
    key = test_key if test_key in keys else keys[0] if len(keys) == 1 else None
    body = record.evaluation(key) if key else None
    return {k: v for k, v in (body or {}).items() if k.startswith("test_")}


def _history(record: TrialRecord, final: Mapping[str, Any]) -> list[Point]:
    """The losses over time; the last one as the study measures it."""
    points = [
        (r["tokens"], r["flops"], r["seconds"], r["val_loss"])
        for r in record.metrics()
        if r.get("val_loss") is not None and r.get("flops") is not None
    ]
    if points and points[-1][0] == final.get("tokens") and final.get("val_loss") is not None:
        points[-1] = (*points[-1][:3], final["val_loss"])
    return points


def _sensitivity(store: Store, rows: Sequence[TrialRow], ids: Sequence[str]) -> float | None:
    """The arm's sensitivity to the learning rate over its tuning trials; None below five rates.

    None as well when a trial is not finished (ASHA stopped it): its rate has no final loss. A run's loss counts as
    at most ln V, what a model knows before training; a rate's is the mean over the tuning seeds.
    """
    if not rows or any(r.state != FINISHED or r.lr is None for r in rows):
        return None
    vocab_size = (store.trial(ids[0]).spec() or {}).get("model", {}).get("vocab_size")
    if not vocab_size or all(r.outcome == "diverged" for r in rows):
        return None
    initial = math.log(vocab_size)
    losses: dict[float, list[float]] = {}
    for r in rows:
        value = r.metrics.get("val_loss")
        losses.setdefault(float(r.lr or 0), []).append(initial if value is None else min(value, initial))
    return lr_sensitivity({lr: sum(v) / len(v) for lr, v in losses.items()}, initial)
