"""Run records: what a job's trials did, on disk, in objects that are written once and whole.

    <root>/trials/<id>/trial.json                         what was to be trained
    <root>/trials/<id>/decisions/<study>-<n>.json         what the driver decided about it (stops, memory)
    <root>/trials/<id>/evaluations/<key>.json             measurements outside the training run (the test split);
                                                          <key>@<numerics> where only one fingerprint counts
    <root>/trials/<id>/attempts/<n>/provenance.json       who trains it: versions, machine, where it resumed from
    <root>/trials/<id>/attempts/<n>/metrics-<k>.jsonl     rows, in numbered segments
    <root>/trials/<id>/attempts/<n>/checkpoints/<step>/   files, then manifest.json: it exists when the manifest does
    <root>/trials/<id>/attempts/<n>/status.json           heartbeat, state, reason
    <root>/studies/<study>/…                              the resolved job and its rate and phase decisions

An *attempt* is one process's go at a trial; its number is the lease. A worker writes only below its own attempt, the
driver only decisions, so a process that was thought dead can do no harm.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.store.objects import LocalObjects, Objects

SCHEMA_VERSION = 1
FINISHED, STOPPED, RUNNING, FAILED = "finished", "stopped", "running", "failed"


def dump_json(value: Any, indent: int | None = None) -> bytes:
    """JSON with NaN and infinities as null (their keys are listed under `non_finite` in a mapping)."""
    return json.dumps(_finite(value), indent=indent, sort_keys=False, allow_nan=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        clean = {str(k): _finite(v) for k, v in value.items()}
        bad = [str(k) for k, v in value.items() if isinstance(v, float) and not math.isfinite(v)]
        return {**clean, "non_finite": bad} if bad else clean
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `files` maps names to bytes-like object keys, hashes checked on reading."""

    attempt: int
    step: int
    prefix: str
    files: Mapping[str, str]  # name -> sha256
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Status:
    """The last word of an attempt: `state` is running, finished, stopped or failed; `reason` says why it ended."""

    attempt: int
    state: str
    heartbeat: int
    step: int
    reason: Mapping[str, Any] | None
    final: Mapping[str, Any] | None


class Attempt:
    """The writing end of one attempt at a trial."""

    def __init__(self, record: TrialRecord, number: int) -> None:
        self.record = record
        self.number = number
        self.prefix = f"{record.prefix}/attempts/{number}"
        self._segment = 0
        self._heartbeat = 0
        self._checkpoints: list[str] = []  # prefixes, oldest first: an attempt's process writes them all

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows as a new numbered segment (one atomic object); nothing is written for no rows."""
        lines = [dump_json(row) for row in rows]
        if lines:
            self.record.objects.put(
                f"{self.prefix}/metrics-{self._segment:06d}.jsonl", b"\n".join(lines) + b"\n"
            )
            self._segment += 1

    def write_status(
        self,
        state: str,
        step: int,
        reason: Mapping[str, Any] | None = None,
        final: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace status.json; its heartbeat is a counter that only grows, not a clock."""
        self._heartbeat += 1
        body = {
            "schema_version": SCHEMA_VERSION,
            "state": state,
            "heartbeat": self._heartbeat,
            "step": step,
            "reason": reason,
            "final": final,
        }
        self.record.objects.put(f"{self.prefix}/status.json", dump_json(body, indent=1))

    def write_json(self, name: str, value: Any) -> None:
        """Keep something else of the attempt (its samples) as `<name>.json`."""
        self.record.objects.put(f"{self.prefix}/{name}.json", dump_json(value, indent=1))

    def save_checkpoint(
        self,
        step: int,
        files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
        meta: Mapping[str, Any],
        keep_last: int,
    ) -> None:
        """Write the files, then the manifest that makes them a checkpoint; then drop all but `keep_last`.

        Files from a generator are in memory one at a time. Where the disk is full the half-written one is removed.
        """
        prefix = f"{self.prefix}/checkpoints/{step:010d}"
        try:
            self._write_checkpoint(prefix, step, files, meta)
        except OSError:
            self.record.objects.delete(prefix)
            raise
        self._checkpoints.append(prefix)
        while len(self._checkpoints) > keep_last:
            self.record.objects.delete(self._checkpoints.pop(0))

    def _write_checkpoint(
        self,
        prefix: str,
        step: int,
        files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
        meta: Mapping[str, Any],
    ) -> None:
        hashes = {}
        for name, data in files.items() if isinstance(files, Mapping) else files:
            self.record.objects.put(f"{prefix}/{name}", data)
            hashes[name] = hashlib.sha256(data).hexdigest()
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "files": hashes,
            "meta": dict(meta),
        }
        self.record.objects.put(f"{prefix}/manifest.json", dump_json(manifest, indent=1))


class TrialRecord:
    """The reading end of a trial's record, and the place attempts start from.

    With `numerics`, a fingerprint (see `fabric.train.process.numerics`), attempts under any other are not seen.
    """

    def __init__(self, objects: Objects, trial_id: str, numerics: str | None = None) -> None:
        self.objects = objects
        self.id = trial_id
        self.numerics = numerics
        self.prefix = f"trials/{trial_id}"

    def _json(self, key: str) -> Any:
        data = self.objects.get(key)
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError:
            return None  # a torn object counts as absent: what it described is done again

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Keep what is to be trained (once; the id says it cannot differ later)."""
        self.objects.create(f"{self.prefix}/trial.json", dump_json(spec, indent=1))

    def spec(self) -> dict[str, Any] | None:
        return self._json(f"{self.prefix}/trial.json")

    def attempt_numbers(self) -> list[int]:
        """The attempts that count, oldest first: none after the first that finished, whose numbers stand for good."""
        counted = []
        for number in self._all_attempts():
            if self.numerics in (None, self.fingerprint(number)):
                counted.append(number)
                status = self._status_of(number)
                if status is not None and status.state == FINISHED:
                    break
        return counted

    def _all_attempts(self) -> list[int]:
        keys = self.objects.list(f"{self.prefix}/attempts")
        return sorted({int(k.split("/attempts/")[1].split("/")[0]) for k in keys})

    def fingerprint(self, attempt: int) -> str | None:
        """The numerics an attempt was trained under; None where it does not say."""
        return ((self.provenance(attempt) or {}).get("numerics") or {}).get("fingerprint")

    def new_attempt(self, provenance: Mapping[str, Any]) -> Attempt:
        """Take the lease: the next free attempt number, by conditional create."""
        number = (self._all_attempts() or [0])[-1] + 1
        while not self.objects.create(
            f"{self.prefix}/attempts/{number}/provenance.json", dump_json(provenance, indent=1)
        ):
            number += 1
        return Attempt(self, number)

    def provenance(self, attempt: int) -> dict[str, Any] | None:
        return self._json(f"{self.prefix}/attempts/{attempt}/provenance.json")

    def attempt_json(self, attempt: int, name: str) -> Any:
        """What `Attempt.write_json` kept under that name, or None."""
        return self._json(f"{self.prefix}/attempts/{attempt}/{name}.json")

    def status(self) -> Status | None:
        """The status that counts: the finished attempt's if there is one, else the newest attempt's that has one."""
        return next((s for n in reversed(self.attempt_numbers()) if (s := self._status_of(n))), None)

    def _status_of(self, attempt: int) -> Status | None:
        body = self._json(f"{self.prefix}/attempts/{attempt}/status.json")
        if not isinstance(body, dict):
            return None
        return Status(
            attempt, body["state"], body["heartbeat"], body["step"], body.get("reason"), body.get("final")
        )

    def checkpoints(self) -> list[Checkpoint]:
        """All complete checkpoints, oldest step first (of equal steps the newest attempt last)."""
        found = []
        for attempt in self.attempt_numbers():
            for key in self.objects.list(f"{self.prefix}/attempts/{attempt}/checkpoints"):
                if not key.endswith("/manifest.json"):
                    continue
                body = self._json(key)
                if isinstance(body, dict) and {"step", "files", "meta"} <= body.keys():
                    prefix = key.rsplit("/", 1)[0]
                    found.append(Checkpoint(attempt, body["step"], prefix, body["files"], body["meta"]))
        return sorted(found, key=lambda c: (c.step, c.attempt))

    def read_checkpoint(self, checkpoint: Checkpoint) -> dict[str, bytes] | None:
        """A checkpoint's files, or None when one is missing or damaged (then use an older one)."""
        files = {}
        for name, digest in checkpoint.files.items():
            data = self.objects.get(f"{checkpoint.prefix}/{name}")
            if data is None or hashlib.sha256(data).hexdigest() != digest:
                return None
            files[name] = data
        return files

    def drop_older_checkpoints(self) -> None:
        """Drop the checkpoints of attempts before a finished one: nothing goes on from them any more.

        The newest stays whosever it is: an attempt that resumed at the last step has not written it again.
        """
        status = self.status()
        if status is not None and status.state == FINISHED:
            for checkpoint in self.checkpoints()[:-1]:
                if checkpoint.attempt != status.attempt:
                    self.objects.delete(checkpoint.prefix)

    def metrics(self) -> list[dict[str, Any]]:
        """The trial's rows in order of step, one a step: an attempt's rows replace earlier ones from its start on."""
        rows: list[dict[str, Any]] = []
        for number in self.attempt_numbers():
            mine = self._rows_of(number)
            if mine:
                start = (self.provenance(number) or {}).get("resumed_step") or 0
                rows = [r for r in rows if r["step"] <= start and r["step"] != mine[0]["step"]] + mine
        return rows

    def _rows_of(self, attempt: int) -> list[dict[str, Any]]:
        rows = []
        for key in self.objects.list(f"{self.prefix}/attempts/{attempt}/"):
            if "/metrics-" in key:
                for line in (self.objects.get(key) or b"").split(b"\n"):
                    try:
                        rows.append(json.loads(line))
                    except ValueError:
                        continue  # a cut line: the rows before it stand
        return [r for r in rows if isinstance(r, dict) and "step" in r]

    def write_evaluation(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep a measurement, once: a second reading of the test split is not taken."""
        self.objects.create(
            f"{self.prefix}/evaluations/{key}{self._suffix}.json", dump_json(result, indent=1)
        )

    def evaluation(self, key: str) -> dict[str, Any] | None:
        return self._json(f"{self.prefix}/evaluations/{key}{self._suffix}.json")

    def evaluation_keys(self) -> list[str]:
        """The keys of what was measured."""
        names = [k.rsplit("/", 1)[1] for k in self.objects.list(f"{self.prefix}/evaluations")]
        keys = [n.removesuffix(".json").partition("@") for n in names]
        return [key for key, at, numerics in keys if at + numerics == self._suffix]

    @property
    def _suffix(self) -> str:
        return "" if self.numerics is None else f"@{self.numerics}"

    def write_decision(self, name: str, decision: Mapping[str, Any]) -> bool:
        """Record a decision of the driver about this trial; False when it was taken before."""
        return self.objects.create(f"{self.prefix}/decisions/{name}.json", dump_json(decision, indent=1))

    def decisions(self, study: str = "") -> list[dict[str, Any]]:
        """The decisions about this trial, of one study or of all, in the order of their names."""
        keys = self.objects.list(f"{self.prefix}/decisions")
        mine = [k for k in keys if k.rsplit("/", 1)[1].startswith(study)]
        return [body for k in mine if isinstance(body := self._json(k), dict)]

    def decision(self, name: str) -> dict[str, Any] | None:
        return self._json(f"{self.prefix}/decisions/{name}.json")


class Store:
    """All records of one job below one root (`<out>/<job name>`)."""

    def __init__(self, root: Path | str, objects: Objects | None = None) -> None:
        self.root = Path(root)
        self.objects = objects or LocalObjects(self.root)

    def trial(self, trial_id: str, numerics: str | None = None) -> TrialRecord:
        return TrialRecord(self.objects, trial_id, numerics)

    def trial_ids(self) -> list[str]:
        keys = [k for k in self.objects.list("trials") if k.endswith("/trial.json")]
        return sorted(k.split("/")[1] for k in keys)

    def write_study(self, study: str, name: str, body: Mapping[str, Any]) -> bool:
        """Record something of a study once (its job, a rate, a phase's winner); False when it was there."""
        return self.objects.create(f"studies/{study}/{name}.json", dump_json(body, indent=1))

    def study(self, study: str, name: str) -> dict[str, Any] | None:
        data = self.objects.get(f"studies/{study}/{name}.json")
        return None if data is None else json.loads(data)

    def newest_study(self) -> str | None:
        """The study that was begun last, or None."""
        times = {s: (self.study(s, "job") or {}).get("created", 0.0) for s in self.studies()}
        return max(times, key=lambda s: times[s]) if times else None

    def studies(self) -> list[str]:
        return sorted({k.split("/")[1] for k in self.objects.list("studies")})
