"""Warm-up, stable, decay: the rate stays at its peak until the last `decay` fraction (MiniCPM, arXiv 2404.06395)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fabric.job.units import Real
from fabric.train.config import ScheduleConfig


class WarmupStableDecay(ScheduleConfig):
    """Linear warm-up, constant rate, linear decay over the last `decay` fraction.

    The step after the last would have `final` times the peak: no update is made at a rate of zero.
    """

    REVISION: ClassVar[int] = 2

    kind: Literal["wsd"]
    decay: Real = Field(default=0.2, gt=0, le=1)
    final: Real = Field(default=0.0, ge=0, le=1)

    def multiplier(self, step: int, n_steps: int) -> float:
        warmup = self.warmup_steps(n_steps)
        if step < warmup:
            return (step + 1) / warmup
        n_decay = max(1, min(round(self.decay * n_steps), n_steps - warmup))
        into_decay = step - (n_steps - n_decay) + 1
        if into_decay <= 0:
            return 1.0
        return 1.0 - (1.0 - self.final) * into_decay / (n_decay + 1)
