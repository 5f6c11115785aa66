"""The writing end of a trial: what its training process puts down, below its own attempt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from fabric.store.encoding import SCHEMA_VERSION, dump_json
from fabric.store.objects import Objects


class Attempt:
    """The writing end of one attempt at a trial."""

    def __init__(self, objects: Objects, prefix: str, number: int) -> None:
        self.objects = objects
        self.number = number
        self.prefix = f"{prefix}/attempts/{number}"
        self._segment = 0
        self._heartbeat = 0
        self._checkpoints: list[str] = []  # prefixes, oldest first: an attempt's process writes them all

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows as a new numbered segment (one atomic object); nothing is written for no rows."""
        lines = [dump_json(row) for row in rows]
        if lines:
            self.objects.put(f"{self.prefix}/metrics-{self._segment:06d}.jsonl", b"\n".join(lines) + b"\n")
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
        self.objects.put(f"{self.prefix}/status.json", dump_json(body, indent=1))

    def write_json(self, name: str, value: Any) -> None:
        """Keep something else of the attempt (its samples) as `<name>.json`."""
        self.objects.put(f"{self.prefix}/{name}.json", dump_json(value, indent=1))

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
            self.objects.delete(prefix)
            raise
        self._checkpoints.append(prefix)
        while len(self._checkpoints) > keep_last:
            self.objects.delete(self._checkpoints.pop(0))

    def _write_checkpoint(
        self,
        prefix: str,
        step: int,
        files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
        meta: Mapping[str, Any],
    ) -> None:
        hashes = {}
        for name, data in files.items() if isinstance(files, Mapping) else files:
            self.objects.put(f"{prefix}/{name}", data)
            hashes[name] = hashlib.sha256(data).hexdigest()
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "files": hashes,
            "meta": dict(meta),
        }
        self.objects.put(f"{prefix}/manifest.json", dump_json(manifest, indent=1))
