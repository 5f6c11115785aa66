"""Linear warm-up, then the peak rate to the end."""

from __future__ import annotations

from typing import Literal

from fabric.train.config import ScheduleConfig


class Constant(ScheduleConfig):
    """Warm-up, then constant."""

    kind: Literal["constant"]

    def multiplier(self, step: int, n_steps: int) -> float:
        warmup = self.warmup_steps(n_steps)
        return (step + 1) / warmup if step < warmup else 1.0
