"""What a run has come to: everything besides weights and optimizer that the next step depends on or reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fabric.train.config import TrainConfig
from fabric.train.meters import History
from fabric.train.stopping import EarlyStop


@dataclass
class LoopState:
    """Written into every checkpoint. Times in seconds, over all attempts of the trial."""

    early_stop: EarlyStop
    micro_batch_size: int
    step: int = 0
    history: History = field(default_factory=History)
    seconds: float = 0.0
    data_seconds: float = 0.0
    skipped_steps: int = 0
    consecutive_skips: int = 0
    peak_memory_bytes: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def fresh(cls, train: TrainConfig) -> LoopState:
        return cls(EarlyStop(train.early_stop), train.micro_batch_size or train.batch_size)

    _PLAIN = (
        "step",
        "micro_batch_size",
        "seconds",
        "data_seconds",
        "skipped_steps",
        "consecutive_skips",
        "peak_memory_bytes",
        "events",
    )

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, for `torch.load(weights_only=True)`."""
        plain = {name: getattr(self, name) for name in self._PLAIN}
        return {**plain, "history": self.history.state(), "early_stop": self.early_stop.state()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what `to_dict` returned."""
        for name in self._PLAIN:
            setattr(self, name, saved[name])
        self.history = History.restore(saved["history"])
        self.early_stop.restore(saved["early_stop"])
