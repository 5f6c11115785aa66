"""A trial's training state and the one operation on it: the next step. Knows nothing of reports or records."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

import models
from fabric.data import Batches
from fabric.train import meters, process
from fabric.train.checkpoint import loop_state
from fabric.train.exposed import Span
from fabric.train.group import ALONE, Group
from fabric.train.memory import OutOfMemory, PeakMemory, is_out_of_memory
from fabric.train.start import fresh, started
from fabric.train.state import LoopState
from fabric.train.step import Stepper
from fabric.train.stopping import Divergence

if TYPE_CHECKING:
    from fabric.data import TokenCache
    from fabric.data.stream import Read, StreamedBatches
    from fabric.planning.trial import TrialSpec

T = TypeVar("T")
# A loss scale halved this often in a row (65536 to 2**-24) meets gradients that are finite at no scale.
MAX_CONSECUTIVE_SKIPS = 40


class Engine:
    """Model, optimizer, data order and `state` of one trial on this rank; `weights` is the file it starts from,
    `read` how a stream's units are read.

    `diverged` is None, or the reason (with the step) as soon as a step's figures were read and found wrong.
    """

    def __init__(
        self,
        trial: TrialSpec,
        cache: TokenCache,
        weights: Path | None = None,
        group: Group = ALONE,
        read: Read | None = None,
    ) -> None:
        self.trial, self.config, self.group = trial, trial.train, group
        self.seq_len = trial.data.seq_len
        self.tokens_per_step = self.config.batch_size * self.seq_len
        self.n_params = models.n_params(trial.model)
        forward = self.config.objective.flops_per_token(trial.model, self.seq_len, trial.data.n_asked)
        self.flops_per_token = 3 * forward  # backward: twice forward
        self.n_steps = self.config.n_steps(self.seq_len, self.n_params)
        self.stream = None if trial.data.stream is None else _stream(trial, cache, group, read)
        self.batches = self.stream or _exact(trial, cache, group)
        self.first_row = group.rank * (self.config.batch_size // group.world)
        self.state = LoopState.fresh(self.config)
        self.divergence = Divergence(self.config.divergence, ())
        self.diverged: dict[str, Any] | None = None
        self.new_events: list[dict[str, Any]] = []
        self.peak_memory = PeakMemory(trial.device)
        self.n_ids = _n_ids(trial, cache)
        self.config.objective.check_data(trial.data)
        if trial.weights is None:
            self.model = fresh(trial)
        else:
            self.config.objective.check_model(trial.model)
            self.model = started(trial, weights)
        optimizer = self.config.optimizer.build(self.model)
        self.stepper = _stepper(self.model, optimizer, trial, group)
        # Reading a loss waits for the device: every step where that costs nothing, else when it is asked for.
        self._read_every = 1 if trial.device == "cpu" else self.config.log_every_steps
        self._unread: list[tuple[torch.Tensor, torch.Tensor, Span | None]] = []
        self._unread_since = 0.0
        self._steps_read = 0

    # ---- checkpoints

    def saved(self) -> dict[str, Any]:
        """Everything a checkpoint needs besides weights and optimizer state; every rank asks alike."""
        scaler = self.stepper.scaler
        self.state.peak_memory_bytes = self.peak_bytes() or 0
        return {
            "loop": self.state.to_dict(),
            "rng": process.rng_state(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "stream": None if self.stream is None else self.stream.saved(self.state.step),
        }

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Continue from a checkpoint's files."""
        self.stepper.load(files)
        saved = loop_state(files)
        self.state.restore(saved["loop"])
        if self.stepper.scaler is not None:
            self.stepper.scaler.load_state_dict(saved["scaler"])
        process.set_rng_state(saved["rng"])
        if self.stream is not None:
            self.stream.restore(saved["stream"])
        self.divergence = Divergence(self.config.divergence, self.state.history.loss)

    def peak_bytes(self) -> int | None:
        """Peak memory over all attempts so far; None where the system does not tell."""
        now = self.peak_memory.read()
        return None if now is None else max(now, self.state.peak_memory_bytes)

    # ---- steps

    def step(self) -> None:
        """One optimizer step on the global batch; `state.step` counts it."""
        state = self.state
        began = time.perf_counter()
        if not self._unread:
            self._unread_since = began
        rows_BT1 = self.batches.batch(state.step)
        pair = self.config.objective.examples(
            rows_BT1, seed=self.trial.seed, step=state.step, n_ids=self.n_ids, first_row=self.first_row
        )
        ids_BT, targets_BT = map(self._on_device, pair)
        state.data_seconds += time.perf_counter() - began
        loss = self.fitting(lambda micro: self.stepper.gradients(ids_BT, targets_BT, micro))
        norm = self.stepper.update(self.config.schedule.multiplier(state.step, self.n_steps))
        state.step += 1
        self._unread.append((loss, norm, self.stepper.exposed))
        if len(self._unread) >= self._read_every:
            self.read()

    def _on_device(self, values: np.ndarray) -> torch.Tensor:
        found = torch.from_numpy(values)
        if self.trial.device == "cpu":
            return found
        return found.contiguous().pin_memory().to(self.trial.device, non_blocking=True)

    def read(self) -> None:
        """Bring the losses and norms of unread steps to the host, into the history, and judge them in order."""
        if not self._unread:
            return
        values = [
            (float(loss), float(norm), math.nan if span is None else span.seconds())
            for loss, norm, span in self._unread
        ]
        seconds = (time.perf_counter() - self._unread_since) / len(values)
        self._unread.clear()
        for step, (loss, norm, exposed) in enumerate(values, self.state.step - len(values) + 1):
            self._steps_read += 1
            times = (seconds, exposed) if self._steps_read > meters.WARMUP_STEPS else (math.nan, math.nan)
            self.state.history.append(loss, norm, *times)
            self.state.seconds += seconds
            why = self._judge(loss, norm)
            if why is not None and self.diverged is None:
                self.diverged = {"kind": "diverged", "step": step, "why": why}

    def _judge(self, loss: float, norm: float) -> str | None:
        state = self.state
        if self.stepper.scaler is None:
            return self.divergence.see(loss, norm)
        overflowed = not math.isfinite(norm)
        state.skipped_steps += overflowed
        state.consecutive_skips = state.consecutive_skips + 1 if overflowed else 0
        if state.consecutive_skips >= MAX_CONSECUTIVE_SKIPS:
            return (
                f"fp16 gradients overflowed {state.consecutive_skips} times in a row, at ever smaller scales"
            )
        return self.divergence.see(loss, None)

    # ---- memory

    def fitting(self, work: Callable[[int], T]) -> T:
        """`work(micro_batch_size)`, with the size halved as often as it takes to fit in memory.

        Raises OutOfMemory when one sequence does not fit; of several ranks, when one of them does not fit: the
        others are in the middle of the step, and the trial has to begin again with less.
        """
        while True:
            try:
                return work(self.state.micro_batch_size)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error).strip().split("\n")[0][:200]
                if self.group.world > 1:
                    raise OutOfMemory(f"out of memory on rank {self.group.rank}: {message}") from error
            # Outside the handler: the failed step's frames, and the tensors they held, are gone.
            self._halve(message)

    def _halve(self, message: str) -> None:
        size = self.state.micro_batch_size
        if size == 1:
            raise OutOfMemory(
                f"out of memory at step {self.state.step + 1} with a micro-batch of one sequence of {self.seq_len} "
                f"tokens ({message}); use a smaller model, a shorter data.seq_len, or a machine with more memory"
            )
        self.stepper.forget()
        gc.collect()
        if self.trial.device == "cuda":
            torch.cuda.empty_cache()
        self.resize(size // 2, message)

    def resize(self, micro_batch_size: int, why: str) -> None:
        """Use another micro-batch from here on (the global batch stays), and record it.

        Raises ValueError outside 1 … batch_size.
        """
        old, largest = self.state.micro_batch_size, self.config.batch_size
        if not 1 <= micro_batch_size <= largest:
            raise ValueError(f"micro_batch_size={micro_batch_size} is not between 1 and batch_size={largest}")
        self.state.micro_batch_size = micro_batch_size
        if old != micro_batch_size:
            step = self.state.step + 1
            event = {"kind": "micro_batch", "step": step, "from": old, "to": micro_batch_size, "why": why}
            self.state.events.append(event)
            self.new_events.append(event)

    # ---- what it says

    def row(self) -> dict[str, Any]:
        """The figures of the step just done, keyed as in `fabric.job.metrics`; events once, when they are new."""
        state, step = self.state, self.state.step
        tokens = step * self.tokens_per_step
        row: dict[str, Any] = {
            "step": step,
            "tokens": tokens,
            "flops": self.flops_per_token * tokens,
            "seconds": state.seconds,
            "train_loss": state.history.loss[-1],
            "lr": self.config.optimizer.lr * self.config.schedule.multiplier(step - 1, self.n_steps),
            "grad_norm": state.history.grad_norm[-1],
            "data_seconds": state.data_seconds,
            "data_hash": self.batches.data_hash(step - 1),
        }
        if not math.isnan(exposed := state.history.exposed[-1]):
            row["exposed_allreduce_seconds"] = exposed
        if self.stepper.scaler is not None:
            row |= {"loss_scale": self.stepper.scaler.get_scale(), "skipped_steps": state.skipped_steps}
        if self.new_events:
            row["events"], self.new_events = self.new_events, []
        return row

    def figures(self) -> dict[str, Any]:
        """The figures of the whole run: size, speed, memory, stability; every rank asks for them."""
        state, config = self.state, self.config
        counts_all = (
            not config.objective.SKIPS_PADDING
        )  # else FLOPs are those of whole rows: no share of a peak
        peak = meters.peak_flops(self.trial.device, config.precision) if counts_all else None
        exchange = {}
        if self.group.world > 1:
            waits = self.group.gathered(meters.exposed_seconds(state.history))
            exchange = meters.exchange(state.history, waits)
        return {
            "n_params": self.n_params,
            "state_bytes_per_token": models.state_bytes(self.trial.model, self.seq_len, 2) / self.seq_len,
            **meters.speed(state.history, self.tokens_per_step, self.flops_per_token, peak),
            **exchange,
            **meters.stability(state.history, config.clip_norm),
            "peak_memory_bytes": self.peak_bytes(),
            "skipped_steps": state.skipped_steps,
            "data_wait_fraction": state.data_seconds / state.seconds if state.seconds else None,
            "order": self.trial.data.order,
        }


def _exact(trial: TrialSpec, cache: TokenCache, group: Group) -> Batches:
    whole = Batches(cache, "train", trial.data.seq_len, trial.train.batch_size, trial.seed)
    return whole.shard(group.rank, group.world)


def _stream(trial: TrialSpec, cache: TokenCache, group: Group, read: Read | None) -> StreamedBatches:
    from fabric.data.stream import StreamedBatches, in_process

    sizes = (trial.train.batch_size, trial.seed, group.rank, group.world)
    return StreamedBatches(trial.data, cache, *sizes, group.gathered, read or in_process)


def _stepper(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, trial: TrialSpec, group: Group
) -> Stepper:
    if trial.ranks.engine == "torch":
        return Stepper(model, optimizer, trial.train, trial.device, group)
    from fabric.train.zero import ZeroStepper

    return ZeroStepper(model, optimizer, trial, group)


def _n_ids(trial: TrialSpec, cache: TokenCache) -> int:
    """The tokenizer's ids. Raises ValueError when the model has none left for what its objective adds."""
    needed = cache.vocab_size + trial.train.objective.EXTRA_IDS
    if trial.model.vocab_size < needed:
        raise ValueError(
            f"model.vocab_size={trial.model.vocab_size} is below {needed}: the tokenizer's {cache.vocab_size} ids and "
            f"{trial.train.objective.EXTRA_IDS} of objective {trial.train.objective.kind}; raise it"
        )
    return cache.vocab_size
