"""What an attempt writes while it runs: buffered rows, heartbeats, and when a checkpoint is due."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fabric.store import RUNNING, Attempt
from fabric.train.config import CheckpointConfig

HEARTBEAT_SECONDS = 10.0


class Recorder:
    """Rows wait in memory until an evaluation, a checkpoint or a heartbeat, so that a step costs no file."""

    def __init__(self, attempt: Attempt, config: CheckpointConfig, clock: Callable[[], float]) -> None:
        self.attempt, self.config, self.clock = attempt, config, clock
        self._rows: list[dict[str, Any]] = []
        self._beat = self._saved = clock()
        self.saved_step: int | None = None

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)

    def flush(self) -> None:
        """Write the rows held back as one segment."""
        rows, self._rows = self._rows, []
        self.attempt.write_metrics(rows)

    def beat(self, step: int) -> None:
        """Rows and a heartbeat to disk."""
        self.flush()
        self.attempt.write_status(RUNNING, step)
        self._beat = self.clock()

    def end(
        self, state: str, step: int, reason: Mapping[str, Any], final: Mapping[str, Any] | None = None
    ) -> None:
        """Rows and the attempt's last word to disk."""
        self.flush()
        self.attempt.write_status(state, step, reason, final)

    def saved(self, step: int) -> None:
        """Note that a checkpoint of `step` is on disk."""
        self.saved_step, self._saved = step, self.clock()

    def due_by_steps(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` by the number of steps."""
        return self.config.every_steps is not None and step % self.config.every_steps == 0

    def due_by_time(self) -> tuple[bool, bool]:
        """Whether a checkpoint and whether a heartbeat is due by now; reads the clock once."""
        now = self.clock()
        checkpoint = self.config.every_seconds is not None and now - self._saved >= self.config.every_seconds
        return checkpoint, now - self._beat >= HEARTBEAT_SECONDS
