"""`fabric results` and `fabric status`: what a job's folder holds, read from its records alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fabric.analysis.collect import study_rows
from fabric.analysis.scaling import Scaling, scaling_of
from fabric.analysis.table import ArmRow, aggregate
from fabric.analysis.workers import WorkersRow, workers_rows
from fabric.evaluate.config import EvaluateConfig
from fabric.job.schema import SelectConfig
from fabric.planning.tasks import headline
from fabric.store import Store, TrialRecord, Url, driver_lives, located
from fabric.train.directive import PREEMPTED


@dataclass(frozen=True)
class Results:
    """A study's arms, phase by phase, with the decisions that were taken.

    `adopted` are the overrides (path to value) that lead from the job's base to the last phase's winner; `scaling`
    is there when the job says `search.fit: params` and enough sizes have results; `workers` when trials ran on several
    (of this folder, and of those it is compared with); `warnings` are for the reader.
    """

    job: str
    study: str
    scale: str | None
    arms: list[ArmRow]
    decisions: list[dict[str, Any]]
    adopted: dict[str, Any] = field(default_factory=dict)
    scaling: Scaling | None = None
    workers: list[WorkersRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def winner(self) -> ArmRow | None:
        """The row of the last decision's winner."""
        last = self.decisions[-1] if self.decisions else {}
        match = [r for r in self.arms if (r.phase, r.arm) == (last.get("phase"), last.get("winner"))]
        return match[0] if match else None


def results(folder: str | Path | Url, *beside: str | Path | Url, study: str | None = None) -> Results:
    """The results of a job's folder (`<out>/<job>`): mean, 95 % interval, n and verdict per arm and phase.

    `study` picks one of several (another scale, another search); the newest otherwise. The newest studies of the
    folders `beside` it (the same job on other numbers of workers) add their trials to `Results.workers` alone. Raises
    ValueError when a folder holds no study, or not the one asked for.
    """
    job, store, chosen = _chosen(folder, study)
    body = job.get("job", {})
    search = body.get("search", {})
    select = SelectConfig.model_validate(search.get("select", {}))
    evaluate = EvaluateConfig.model_validate(body.get("base", {}).get("evaluate", {}))
    found = study_rows(store, chosen, f"test-{evaluate.test_tokens or 'all'}")
    others = [study_rows(*_chosen(other)[1:]).rows for other in beside]
    arms = aggregate(found.rows, found.baselines, "val_loss", margin=select.margin, alpha=select.alpha)
    kept = {(d["phase"], arm) for d in found.decisions for arm in d["kept"]}
    arms = [replace(row, goes_on=(row.phase, row.arm) in kept) for row in arms]
    scaling = None
    if search.get("fit") == "params":
        scaling, why = scaling_of(arms)
        found.warnings += [why] if why else []
    return Results(
        job["name"],
        chosen,
        job.get("scale"),
        arms,
        found.decisions,
        found.adopted,
        scaling,
        workers_rows([found.rows, *others]),
        found.warnings,
    )


def _chosen(folder: str | Path | Url, study: str | None = None) -> tuple[dict[str, Any], Store, str]:
    """A folder's study as its record has it, the store and the study's id; the newest where none is asked for."""
    store = open_store(folder)
    chosen = study or store.newest_study()
    job = None if chosen is None else store.study(chosen, "job")
    if chosen is None or job is None:
        known = ", ".join(store.studies()) or "none that can be read; the same `fabric sweep` writes it again"
        raise ValueError(f"{folder} holds no study{f' {study}' if study else ''} (there: {known})")
    return job, store, chosen


def open_store(folder: str | Path | Url) -> Store:
    """The store at a job's folder; ValueError when there is none."""
    store = Store(folder).at_once()
    if not store.is_there():
        raise ValueError(
            f"{store.root} is no job folder: it has neither trials nor studies (give <out>/<job name>)"
        )
    return store


@dataclass(frozen=True)
class TrialStatus:
    """One trial's last word; `state` is *interrupted* where the record says running and no driver lives."""

    id: str
    state: Literal["new", "running", "interrupted", "finished", "stopped", "failed"]
    step: int
    attempts: int
    reason: str
    val_loss: float | None


def status(folder: str | Path | Url) -> list[TrialStatus]:
    """The state of every trial in a job's folder. Raises ValueError when it is no job folder."""
    alive = driver_lives(located(folder))  # before the look at its trials, which it may end meanwhile
    store = open_store(folder)
    found = []
    for trial_id in store.trial_ids():
        record = store.trial(trial_id)
        last = record.status()
        n_attempts = len(record.attempt_numbers())
        failure = _failure(record)
        if last is None:
            begun: Any = "failed" if failure else ("running" if alive and n_attempts else "new")
            found.append(TrialStatus(trial_id, begun, 0, n_attempts, failure or "", None))
            continue
        reason = last.reason or {}
        state: Any = last.state
        left = state == "stopped" and reason.get("kind") in ("interrupted", "paused", PREEMPTED)
        if left or (state == "running" and not alive):
            state = "interrupted"
        if state in ("running", "interrupted") and (stop := _stopped_at(record, last.step)):
            state, reason = "stopped", stop
        elif state in ("running", "interrupted") and failure:
            state, reason = "failed", {"kind": "failed", "error": failure}
        loss = (last.final or {}).get("val_loss")
        found.append(TrialStatus(trial_id, state, last.step, n_attempts, _why(reason), loss))
    return found


def _stopped_at(record: TrialRecord, step: int) -> dict[str, Any] | None:
    """The decision that stopped a trial at this step; its worker stands there without a word until it is reused."""
    spec = record.spec()
    n_tokens = step * spec["train"]["batch_size"] * spec["data"]["seq_len"] if spec else None
    stops = [d for d in record.decisions() if d.get("stop") and d.get("rung") == n_tokens]
    return stops[-1] if stops else None


def _failure(record: TrialRecord) -> str | None:
    """What the driver heard of the newest attempt's failure; its worker may have been killed without a word."""
    newest = max(record.attempt_numbers(), default=0)
    failures = [d for d in record.decisions() if d.get("failed_attempt") == newest]
    return headline(failures[-1]["error"]) if failures else None


def _why(reason: dict[str, Any] | Any) -> str:
    kind = reason.get("kind", "")
    if kind == "stopped" and "rung" in reason:
        return f"rung {reason['rung']} tokens: {reason['value']} against {reason['cutoff']}"
    details = [f"{k} {v}" for k, v in reason.items() if k in ("step", "why", "message", "error")]
    return " ".join([str(kind), *map(str, details)]).strip().split("\n")[0]
