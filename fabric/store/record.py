"""One trial's record, read: which attempts count, how it ended, what was measured and decided."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fabric.store.attempt import Attempt
from fabric.store.encoding import create_record, dump_json, read_json, read_record
from fabric.store.objects import Nowhere, Objects

FINISHED, STOPPED, RUNNING, FAILED = "finished", "stopped", "running", "failed"


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


class TrialRecord:
    """The reading end of a trial's record, and the place attempts start from.

    With `numerics`, a fingerprint (see `fabric.train.process.numerics`), attempts under any other are not seen.
    """

    def __init__(self, objects: Objects, trial_id: str, numerics: str | None = None) -> None:
        self.objects = objects
        self.id = trial_id
        self.numerics = numerics
        self.prefix = f"trials/{trial_id}"

    def _read(self, name: str) -> dict[str, Any] | None:
        return read_record(self.objects, f"{self.prefix}/{name}.json")

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Keep what is to be trained (once; the id says it cannot differ later)."""
        create_record(self.objects, f"{self.prefix}/trial.json", spec)

    def is_there(self) -> bool:
        """Whether the trial was ever planned here."""
        return self.objects.get(f"{self.prefix}/trial.json") is not None

    def spec(self) -> dict[str, Any] | None:
        return self._read("trial")

    def attempt_numbers(self) -> list[int]:
        """The attempts that count, oldest first: none after the first that finished, whose numbers stand for good."""
        return [number for number, _ in self._counted()]

    def _counted(self) -> list[tuple[int, Status | None]]:
        counted = []
        for number in self._all_attempts():
            if self.numerics in (None, self.fingerprint(number)):
                status = self._status_of(number)
                counted.append((number, status))
                if status is not None and status.state == FINISHED:
                    break
        return counted

    def _all_attempts(self) -> list[int]:
        keys = self.objects.list(f"{self.prefix}/attempts")
        names = {k.split("/attempts/")[1].split("/")[0] for k in keys}
        return sorted(int(n) for n in names if n.isdecimal())

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
        return Attempt(self.objects, self.prefix, number)

    def unwritten_attempt(self) -> Attempt:
        """An attempt that keeps nothing: what a rank that does not write for its trial is given."""
        return Attempt(Nowhere(), self.prefix, 0)

    def provenance(self, attempt: int) -> dict[str, Any] | None:
        return self._read(f"attempts/{attempt}/provenance")

    def attempt_json(self, attempt: int, name: str) -> Any:
        """What `Attempt.write_json` kept under that name, or None."""
        return read_json(self.objects, f"{self.prefix}/attempts/{attempt}/{name}.json")

    def status(self) -> Status | None:
        """The status that counts: the finished attempt's if there is one, else the newest attempt's that has one."""
        return next((status for _, status in reversed(self._counted()) if status is not None), None)

    def _status_of(self, attempt: int) -> Status | None:
        body = self._read(f"attempts/{attempt}/status")
        if body is None or not {"state", "heartbeat", "step"} <= body.keys():
            return None
        return Status(
            attempt, body["state"], body["heartbeat"], body["step"], body.get("reason"), body.get("final")
        )

    def final(self, evaluation: str | None = None) -> Mapping[str, Any] | None:
        """The last row of a finished trial as measured under an evaluation key (None: as its attempt measured it).

        None when it is not finished, or was measured under another key and not measured again yet.
        """
        status = self.status()
        if status is None or status.state != FINISHED:
            return None
        measured = (self.provenance(status.attempt) or {}).get("evaluation")
        diverged = (status.reason or {}).get("kind") == "diverged"  # there is nothing to measure
        if diverged or evaluation is None or measured in (None, evaluation):
            return status.final or {}
        return self.evaluation(f"final-{evaluation}")

    def checkpoints(self) -> list[Checkpoint]:
        """All complete checkpoints, oldest step first (of equal steps the newest attempt last)."""
        found = []
        for attempt in self.attempt_numbers():
            for key in self.objects.list(f"{self.prefix}/attempts/{attempt}/checkpoints"):
                if not key.endswith("/manifest.json"):
                    continue
                body = read_record(self.objects, key)
                if body is not None and {"step", "files", "meta"} <= body.keys():
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
        create_record(self.objects, f"{self.prefix}/evaluations/{key}{self._suffix}.json", result)

    def evaluation(self, key: str) -> dict[str, Any] | None:
        return self._read(f"evaluations/{key}{self._suffix}")

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
        return create_record(self.objects, f"{self.prefix}/decisions/{name}.json", decision)

    def decisions(self, study: str = "") -> list[dict[str, Any]]:
        """The decisions about this trial, of one study or of all, in the order of their names."""
        keys = self.objects.list(f"{self.prefix}/decisions")
        mine = [k for k in keys if k.rsplit("/", 1)[1].startswith(study)]
        return [body for k in mine if (body := read_record(self.objects, k)) is not None]

    def decision(self, name: str) -> dict[str, Any] | None:
        return self._read(f"decisions/{name}")
