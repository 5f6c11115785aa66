"""What several workers a trial were worth: strong and weak efficiency, and the exchange that computing did not hide.

Strong efficiency is T1 / (n Tn) at the same global batch, weak efficiency T1 / Tn at the same batch per worker; Tn is
the median time of a step on n workers. Both compare trials whose steps are alike in all else (model, length, precision,
optimizer, threads, numerics fingerprint). Workers that share the cores of one machine cannot show how a cluster scales.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fabric.planning.trial import canonical_json
from fabric.store import TrialRecord

if TYPE_CHECKING:
    from fabric.analysis.table import TrialRow


@dataclass(frozen=True)
class Ran:
    """How a finished trial ran: `work` names what a step computes besides its number of sequences."""

    trial: str
    work: str
    engine: str
    workers: int
    batch_size: int
    seq_len: int

    @classmethod
    def read(cls, record: TrialRecord, spec: Mapping[str, Any]) -> Ran | None:
        """From a trial's record; None where attempts ran on several worker counts, or do not say."""
        said = [record.provenance(n) or {} for n in record.attempt_numbers()]
        ranks = [s.get("ranks") or {} for s in said]
        if not ranks or any("world" not in r or r != ranks[0] for r in ranks):
            return None
        zero = f" ZeRO-{ranks[0]['zero_stage']}" if ranks[0].get("engine") == "deepspeed" else ""
        train, seq_len = spec["train"], spec["data"]["seq_len"]
        alike = [train.get(k) for k in ("objective", "precision", "compile", "micro_batch_size", "clip_norm")]
        numerics = (said[-1].get("numerics") or {}).get("fingerprint")
        work = canonical_json([spec["model"], seq_len, alike, train["optimizer"]["kind"], numerics])
        return cls(
            record.id,
            hashlib.sha256(work.encode()).hexdigest()[:12],
            f"{ranks[0].get('engine', 'torch')}{zero}",
            ranks[0]["world"],
            train["batch_size"],
            seq_len,
        )


@dataclass(frozen=True)
class WorkersRow:
    """Trials of one arm on so many workers: means over `n` trials; an efficiency is None without its one-worker side.

    `exposed` is the share of a step (`exposed_allreduce_fraction`), `exposed_seconds` its time; None alone, and under
    ZeRO-2 and 3.
    """

    arm: str
    engine: str
    workers: int
    batch_size: int
    n: int
    step_seconds: float
    tokens_per_second: float
    strong: float | None
    weak: float | None
    exposed: float | None
    exposed_seconds: float | None


Key = tuple[str, str, int, int]  # work, engine, workers, batch size


def workers_rows(folders: Sequence[Sequence[TrialRow]]) -> list[WorkersRow]:
    """A row per arm, engine, batch and number of workers, over the trials of several folders; [] if all ran alone.

    Arms that differ in nothing a step's time depends on (a learning rate) are one row, under the first one's name.
    """
    groups: dict[Key, list[TrialRow]] = {}
    names: dict[str, str] = {}
    for rows in folders:
        seen: set[str] = set()  # a trial may serve several phases
        for row in rows:
            ran = row.ran
            timed = row.outcome == "finished" and row.metrics.get("tokens_per_second")
            if ran is not None and timed and ran.trial not in seen:
                seen.add(ran.trial)
                names.setdefault(ran.work, row.arm)
                groups.setdefault((ran.work, ran.engine, ran.workers, ran.batch_size), []).append(row)
    if all(workers == 1 for _, _, workers, _ in groups):
        return []
    times = {key: _mean([_step_seconds(r) for r in rows]) for key, rows in groups.items()}
    order = list(names)
    keys = sorted(groups, key=lambda k: (order.index(k[0]), k[1], k[3], k[2]))
    return [_row(names[key[0]], key, groups[key], times) for key in keys]


def _row(arm: str, key: Key, rows: Sequence[TrialRow], times: Mapping[Key, float]) -> WorkersRow:
    work, engine, workers, batch_size = key
    same_batch = _alone(times, work, engine, batch_size)
    same_share = None if batch_size % workers else _alone(times, work, engine, batch_size // workers)
    return WorkersRow(
        arm,
        engine,
        workers,
        batch_size,
        len(rows),
        times[key],
        _mean([r.metrics["tokens_per_second"] for r in rows]),
        None if same_batch is None else same_batch / (workers * times[key]),
        None if same_share is None else same_share / times[key],
        _mean_metric(rows, "exposed_allreduce_fraction"),
        _mean_metric(rows, "exposed_allreduce_seconds"),
    )


def _mean_metric(rows: Sequence[TrialRow], key: str) -> float | None:
    known = [value for r in rows if (value := r.metrics.get(key)) is not None]
    return _mean(known) if known else None


def _alone(times: Mapping[Key, float], work: str, engine: str, batch_size: int) -> float | None:
    """The step of one plain process, or else of one worker of the same engine."""
    return next(
        (t for e in ("torch", engine) if (t := times.get((work, e, 1, batch_size))) is not None), None
    )


def _step_seconds(row: TrialRow) -> float:
    assert row.ran is not None
    return row.ran.batch_size * row.ran.seq_len / float(row.metrics["tokens_per_second"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
