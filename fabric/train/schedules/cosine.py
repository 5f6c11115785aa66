"""Linear warm-up, then a cosine to `final` times the peak rate (Loshchilov & Hutter 2017, arXiv 1608.03983)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from fabric.job.units import Real
from fabric.train.config import ScheduleConfig


class Cosine(ScheduleConfig):
    """Warm-up, then cosine decay over all remaining steps."""

    kind: Literal["cosine"]
    final: Real = Field(default=0.1, ge=0, le=1)

    def multiplier(self, step: int, n_steps: int) -> float:
        warmup = self.warmup_steps(n_steps)
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, n_steps - 1 - warmup))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
