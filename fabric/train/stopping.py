"""When a run ends before its last step: it diverged, or it has converged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fabric.train.config import DivergenceConfig, EarlyStopConfig


class Divergence:
    """A non-finite loss or gradient, or a loss above the first one for `above_initial_steps` steps in a row."""

    def __init__(self, config: DivergenceConfig, losses: Sequence[float]) -> None:
        """`losses` are those of the steps before (after a resume), the first one included."""
        self._limit = config.above_initial_steps
        self._first: float | None = losses[0] if losses else None
        self._above = 0
        for loss in losses[-self._limit :]:
            self.see(loss, None)

    def see(self, loss: float, grad_norm: float | None) -> str | None:
        """Take one step's figures; says what is wrong, or None. A `grad_norm` of None was not used."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if grad_norm is not None and not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm}"
        if self._first is None:
            self._first = loss
        self._above = self._above + 1 if loss > self._first else 0
        if self._above >= self._limit:
            return f"the loss was above the first step's {self._first:.4f} for {self._above} steps"
        return None


class EarlyStop:
    """Counts evaluations without an improvement of `min_delta` over the best one."""

    def __init__(self, config: EarlyStopConfig | None) -> None:
        self.config = config
        self.best = math.inf
        self.without = 0

    def see(self, value: float) -> bool:
        """Take one scheduled evaluation; True when patience is at its end (never without a config)."""
        if self.config is None:
            return False
        if value < self.best - self.config.min_delta:
            self.best, self.without = value, 0
        else:
            self.without += 1
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return self.config is not None and self.without >= self.config.patience

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "without": self.without}

    def restore(self, state: dict[str, Any]) -> None:
        self.best, self.without = state["best"], state["without"]
