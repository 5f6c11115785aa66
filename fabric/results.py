"""`fabric results` and `fabric status`: what a job's folder holds, read from its records alone."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fabric.analysis.collect import study_rows
from fabric.analysis.table import ArmRow, aggregate
from fabric.store import Store, TrialRecord


@dataclass(frozen=True)
class Results:
    """A study's arms, phase by phase, with the decisions that were taken."""

    job: str
    study: str
    scale: str | None
    arms: list[ArmRow]
    decisions: list[dict[str, Any]]


def results(folder: str | Path, *, study: str | None = None) -> Results:
    """The results of a job's folder (`<out>/<job>`): mean, 95 % interval, n and verdict per arm and phase.

    `study` picks one of several (another scale, another search); the newest otherwise. Raises ValueError when the
    folder holds no study, or not the one asked for.
    """
    store = open_store(folder)
    chosen = study or store.newest_study()
    if chosen is None or store.study(chosen, "job") is None:
        known = ", ".join(store.studies()) or "none"
        raise ValueError(f"{folder} holds no study{f' {study}' if study else ''} (there: {known})")
    job = store.study(chosen, "job") or {}
    rows, baselines, decisions = study_rows(store, chosen)
    arms = aggregate(rows, baselines, "val_loss")
    return Results(job["name"], chosen, job.get("scale"), arms, decisions)


def open_store(folder: str | Path) -> Store:
    """The store at a job's folder; ValueError when there is none."""
    root = Path(folder).expanduser().resolve()
    if not (root / "trials").is_dir() and not (root / "studies").is_dir():
        raise ValueError(
            f"{root} is no job folder: it has neither trials nor studies (give <out>/<job name>)"
        )
    return Store(root)


@dataclass(frozen=True)
class TrialStatus:
    """One trial's last word; `state` is *interrupted* where the record says running and no driver lives."""

    id: str
    state: Literal["new", "running", "interrupted", "finished", "stopped", "failed"]
    step: int
    attempts: int
    reason: str
    val_loss: float | None


def status(folder: str | Path) -> list[TrialStatus]:
    """The state of every trial in a job's folder. Raises ValueError when it is no job folder."""
    store = open_store(folder)
    alive = _driver_alive(store.root)
    found = []
    for trial_id in store.trial_ids():
        record = store.trial(trial_id)
        last = record.status()
        n_attempts = len(record.attempt_numbers())
        failure = _failure(record, record.attempt_numbers())
        if last is None:
            begun: Any = "running" if alive and n_attempts else "new"
            why = _last_line(failure) if failure else ""
            found.append(TrialStatus(trial_id, "failed" if failure else begun, 0, n_attempts, why, None))
            continue
        reason = last.reason or {}
        state: Any = last.state
        left = state == "stopped" and reason.get("kind") in ("interrupted", "paused")
        if left or (state == "running" and not alive):
            state = "interrupted"
        if state in ("running", "interrupted") and (stop := _stopped_at(record, last.step)):
            state, reason = "stopped", stop
        elif state in ("running", "interrupted") and failure:
            state, reason = "failed", {"kind": "failed", "error": _last_line(failure)}
        loss = (last.final or {}).get("val_loss")
        found.append(TrialStatus(trial_id, state, last.step, n_attempts, _why(reason), loss))
    return found


def _stopped_at(record: TrialRecord, step: int) -> dict[str, Any] | None:
    """The decision that stopped a trial at this step; its worker stands there without a word until it is reused."""
    spec = record.spec() or {}
    n_tokens = step * spec["train"]["batch_size"] * spec["data"]["seq_len"] if spec else None
    stops = [d for d in record.decisions() if d.get("stop") and d.get("rung") == n_tokens]
    return stops[-1] if stops else None


def _failure(record: TrialRecord, attempts: list[int]) -> str | None:
    """What the driver heard of the newest attempt's failure; its worker may have been killed without a word."""
    newest = max(attempts, default=0)
    failures = [d for d in record.decisions() if d.get("failed_attempt") == newest]
    return str(failures[-1]["error"]) if failures else None


def _last_line(error: str) -> str:
    return next((line for line in reversed(error.strip().splitlines()) if line.strip()), error)


def _why(reason: dict[str, Any] | Any) -> str:
    kind = reason.get("kind", "")
    if kind == "stopped" and "rung" in reason:
        return f"rung {reason['rung']} tokens: {reason['value']} against {reason['cutoff']}"
    details = [f"{k} {v}" for k, v in reason.items() if k in ("step", "why", "message", "error")]
    return " ".join([str(kind), *map(str, details)]).strip().split("\n")[0]


def _driver_alive(root: Path) -> bool:
    """Whether a sweep holds the folder's lock."""
    try:
        with open(root / "driver.lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return (root / "driver.lock").exists()
    return False
