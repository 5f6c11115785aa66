"""How long a rank waits for its gradients to be the ranks' sum after its own backward pass is through."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Two moments of one device: clock readings on CPUs, events on the stream of a GPU."""

    begin: Any
    end: Any

    def seconds(self) -> float:
        """Between the two; on a GPU once the stream is past them (reading the step's loss waits for that)."""
        if isinstance(self.begin, float):
            return float(self.end - self.begin)
        return float(self.begin.elapsed_time(self.end)) / 1e3


class ExposedExchange:
    """The exposed part of a step's gradient exchange: what computing does not hide.

    It begins when the last gradient of this rank's own backward pass is computed, and ends when `backward` returns
    with all gradients summed over the ranks. What DistributedDataParallel sends while the pass still computes is not
    in it; waiting for a slower rank is, and so is DeepSpeed's copying into buffers. No collective is added and nothing
    is synchronised: two readings of the clock a step. On GPUs the moments are CUDA events, which has not been run.

    Only sums that come after the backward pass or beside it can be told apart: ZeRO stages 2 and 3 exchange inside of
    it, and are not timed. On CPUs gloo's threads compute and send on the cores that the ranks use, so that overlapped
    sending still slows the backward pass; that part is not in the figure either.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self._computed: Any = None

    def watch(self, loss: Tensor) -> None:
        """Call before the backward pass that exchanges gradients, with the loss it starts from."""
        self._computed = None
        loss.register_hook(self._started)

    def _started(self, _gradient: Tensor) -> None:
        # Callbacks run at the end of the pass in the order they came: before the wait that the wrapper adds later.
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(self._finished)

    def _finished(self) -> None:
        self._computed = self._now()

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def summed(self) -> Span:
        """Call when the backward pass has returned."""
        assert self._computed is not None, "the backward pass that was watched has run"
        return Span(self._computed, self._now())
