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
    <root>/driver/<n>.json                                at a URL: who drives the job (a folder has driver.lock)

An *attempt* is one process's go at a trial; its number is the lease. A worker writes only below its own attempt, the
driver only decisions, so a process that was thought dead can do no harm.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fabric.store.encoding import create_record, dump_json, read_record
from fabric.store.objects import LocalObjects, Objects
from fabric.store.place import Place, Url, located
from fabric.store.record import TrialRecord
from fabric.store.remote import RemoteObjects
from fabric.store.snapshot import Snapshot


def objects_at(root: Place) -> Objects:
    """The objects below a folder or a URL."""
    return RemoteObjects(root) if isinstance(root, Url) else LocalObjects(root)


class Store:
    """All records of one job below one root (`<out>/<job name>`), a folder or a URL."""

    def __init__(self, root: Path | str | Url, objects: Objects | None = None) -> None:
        self.root = located(root)
        self.objects = objects or objects_at(self.root)

    def is_there(self) -> bool:
        """Whether the root is a job's at all."""
        if isinstance(self.root, Path):
            return (self.root / "trials").is_dir() or (self.root / "studies").is_dir()
        return bool(self.objects.list("studies") or self.objects.list("trials"))

    def at_once(self) -> Store:
        """This store to be read as a whole: at a URL as it is now, in few requests."""
        return Store(self.root, Snapshot(self.objects)) if isinstance(self.root, Url) else self

    def trial(self, trial_id: str, numerics: str | None = None) -> TrialRecord:
        return TrialRecord(self.objects, trial_id, numerics)

    def trial_ids(self) -> list[str]:
        keys = [k for k in self.objects.list("trials") if k.endswith("/trial.json")]
        return sorted(k.split("/")[1] for k in keys)

    def write_study(self, study: str, name: str, body: Mapping[str, Any]) -> bool:
        """Record something of a study once (its job, a rate, a phase's winner); False when it was there."""
        return create_record(self.objects, f"studies/{study}/{name}.json", body)

    def study(self, study: str, name: str) -> dict[str, Any] | None:
        return read_record(self.objects, f"studies/{study}/{name}.json")

    def note_use(self, study: str) -> None:
        """Note that a run of this study begins."""
        self.objects.put(f"studies/{study}/used.json", dump_json({"at": time.time()}))

    def newest_study(self) -> str | None:
        """The study that was run last, or None."""
        times = {s: (self.study(s, "used") or {}).get("at", 0.0) for s in self.studies()}
        return max(times, key=lambda s: times[s]) if times else None

    def studies(self) -> list[str]:
        """The studies whose job can be read."""
        names = {k.split("/")[1] for k in self.objects.list("studies")}
        return sorted(n for n in names if self.study(n, "job") is not None)
