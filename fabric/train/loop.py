"""The training loop: plain PyTorch, the same inline, in a Tune trial and in a worker group.

`run` is idempotent. Killed at any moment and called again, it goes on from the newest checkpoint and ends with the
numbers of an undisturbed run, bit for bit (within one numerics fingerprint).
"""

from __future__ import annotations

import contextlib
import gc
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

import models
from fabric.data import Batches
from fabric.evaluate import lm
from fabric.store import FAILED, FINISHED, RUNNING, STOPPED, Status, dump_json
from fabric.train import meters, process
from fabric.train.calendar import calendar
from fabric.train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from fabric.train.directive import CheckpointAndExit, Continue, Directive, Outcome, Report, Stop, keep_going
from fabric.train.memory import OutOfMemory, PeakMemory, is_out_of_memory
from fabric.train.recorder import Recorder
from fabric.train.state import LoopState
from fabric.train.step import Stepper
from fabric.train.stopping import Divergence

if TYPE_CHECKING:
    from fabric.data import TokenCache
    from fabric.plan.trial import TrialSpec
    from fabric.store import Attempt, Checkpoint, TrialRecord

T = TypeVar("T")
# A loss scale halved this often in a row (65536 to 2**-24) meets gradients that are not finite at any scale.
MAX_CONSECUTIVE_SKIPS = 40


def run(
    trial: TrialSpec,
    record: TrialRecord,
    cache: TokenCache,
    *,
    report: Report = keep_going,
    rung_tokens: Sequence[int] = (),
    provenance: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
    micro_batch_size: int | None = None,
) -> Outcome:
    """Train `trial` to its end, or to where `report` says; returns how it ended.

    `report(row)` is called once an evaluation: at the steps that reach `rung_tokens`, the scheduled ones and the end.
    A rung's checkpoint is on disk before its report; everything final is on disk before the last report. A finished
    trial trains nothing and reports its final row. An evaluated row on disk whose report may not have been delivered
    (the process died) is reported again on resume. `micro_batch_size` overrides the trial's and a checkpoint's.

    Divergence is an `Outcome`, not an error. Raises what went wrong otherwise, after writing it to the status:
    `OutOfMemory` when not even a micro-batch of one fits; SystemExit and KeyboardInterrupt leave the trial resumable.
    """
    before = record.status()
    if before is not None and before.state == FINISHED:
        report(dict(before.final or {}))
        return Outcome(FINISHED, before.reason or {}, before.step, before.final or {})
    process.settle(trial)
    newest = newest_checkpoint(record)
    resumed = (newest[0].step, newest[0].attempt) if newest else (0, None)
    who = {**(provenance or {}), **process.provenance(trial)}
    attempt = record.new_attempt({**who, "resumed_step": resumed[0], "resumed_attempt": resumed[1]})
    training: _Training | None = None
    try:
        training = _Training(trial, attempt, cache, report, rung_tokens, clock)
        training.begin(newest, before, micro_batch_size)
        del newest
        with _no_collection():
            return training.train()
    except BaseException as error:
        _write_end(attempt, training, error)
        raise


@contextlib.contextmanager
def _no_collection() -> Any:
    """No garbage collection in mid-step (heartbeats collect); what is alive already is not looked at again."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _write_end(attempt: Attempt, training: _Training | None, error: BaseException) -> None:
    """Say in the status how an exception ended the attempt; out of the last report, all is on disk already."""
    if training is not None and training.finished:
        return
    step = training.state.step if training else 0
    if isinstance(error, SystemExit | KeyboardInterrupt):
        state, reason = STOPPED, {"kind": "interrupted", "by": type(error).__name__}
    else:
        kind = "out_of_memory" if is_out_of_memory(error) else "failed"
        trace = "".join(traceback.format_exception(error))
        state = FAILED
        reason = {"kind": kind, "error": f"{type(error).__name__}: {error}", "traceback": trace}
    with contextlib.suppress(OSError):  # a full disk may be the error itself, which is raised
        if training is not None:
            training.recorder.flush()
        attempt.write_status(state, step, reason)


class _Training:
    """One attempt at a trial: the model, what drives it, and what it has come to."""

    def __init__(
        self,
        trial: TrialSpec,
        attempt: Attempt,
        cache: TokenCache,
        report: Report,
        rung_tokens: Sequence[int],
        clock: Callable[[], float],
    ) -> None:
        self.trial, self.config, self.cache, self.report = trial, trial.train, cache, report
        self.attempt, self.recorder = attempt, Recorder(attempt, trial.train.checkpoint, clock)
        self.seq_len = trial.data.seq_len
        self.tokens_per_step = self.config.batch_size * self.seq_len
        self.n_params = models.n_params(trial.model)
        self.flops_per_token = 3 * models.flops_per_token(trial.model, self.seq_len)
        self.n_steps = self.config.n_steps(self.seq_len, self.n_params)
        self.calendar = calendar(self.n_steps, self.tokens_per_step, trial.evaluate, rung_tokens)
        self.batches = Batches(cache, "train", self.seq_len, self.config.batch_size, trial.seed)
        self.state = LoopState.fresh(self.config)
        self.divergence = Divergence(self.config.divergence, self.state.history.loss)
        self.peak_memory = PeakMemory(trial.device)
        self.model = models.build(trial.model, trial.seed, trial.device)
        optimizer = self.config.optimizer.build(self.model)
        self.stepper = Stepper(self.model, optimizer, self.config, trial.device)
        # Reading a loss waits for the device: every step where that costs nothing, else when it is needed.
        self.read_every = 1 if trial.device == "cpu" else self.config.log_every_steps
        self.unread: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.unread_since = 0.0
        self.steps_read = 0
        self.diverged: dict[str, Any] | None = None
        self.new_events: list[dict[str, Any]] = []
        self.redeliver: dict[str, Any] | None = None
        self.finished = False

    # ---- begin and resume

    def begin(
        self,
        newest: tuple[Checkpoint, Mapping[str, bytes]] | None,
        before: Status | None,
        micro_batch_size: int | None,
    ) -> None:
        """Take over the newest checkpoint, if there is one, and write the first heartbeat."""
        state = self.state
        if newest is not None:
            saved = load_checkpoint(newest[1], self.model, self.stepper.optimizer)
            state.restore(saved["loop"])
            if self.stepper.scaler is not None:
                self.stepper.scaler.load_state_dict(saved["scaler"])
            process.set_rng_state(saved["rng"])
            self.divergence = Divergence(self.config.divergence, state.history.loss)
            self.recorder.saved_step = state.step
            if before is not None and before.state == RUNNING and self.calendar.evaluated(state.step):
                self.redeliver = self._row_on_disk(state.step)
        if micro_batch_size is not None:
            if not 1 <= micro_batch_size <= self.config.batch_size:
                raise ValueError(
                    f"micro_batch_size={micro_batch_size} is not between 1 and batch_size={self.config.batch_size}"
                )
            self._resize(micro_batch_size, "asked for by the caller")
        self.recorder.beat(state.step)

    def _row_on_disk(self, step: int) -> dict[str, Any] | None:
        rows = [r for r in self.attempt.record.metrics() if r["step"] == step and "val_loss" in r]
        return rows[-1] if rows else None

    # ---- the loop

    def train(self) -> Outcome:
        """From where the state is to the end."""
        if self.state.early_stop.exhausted:  # died between its last checkpoint and its last word
            return self._finish(self._converged())
        outcome = None
        if self.redeliver is not None and self.state.step < self.n_steps:
            outcome = self._obey(self.report(dict(self.redeliver)), self.redeliver)
        while outcome is None and self.state.step < self.n_steps:
            outcome = self._next()
        return outcome or self._finish({"kind": "completed"})

    def _next(self) -> Outcome | None:
        self._step()
        step = self.state.step
        evaluated = self.calendar.evaluated(step)
        logged = step % self.config.log_every_steps == 0
        if evaluated or logged or len(self.unread) >= self.read_every:
            self._read()
        if self.diverged is not None:
            return self._finish(self.diverged)
        if step == self.n_steps:
            return None
        if evaluated:
            outcome = self._evaluate()
            if outcome is not None:
                return outcome
        elif logged:
            self.recorder.add(self._row())
        checkpoint, beat = self.recorder.due(step)
        if checkpoint:
            self._checkpoint()
        if beat:
            self.recorder.beat(step)
            gc.collect()
        return None

    def _step(self) -> None:
        """One optimizer step; its loss and gradient norm are left to be read."""
        state = self.state
        began = time.perf_counter()
        if not self.unread:
            self.unread_since = began
        rows_BT1 = torch.from_numpy(self.batches.batch(state.step))
        if self.trial.device != "cpu":
            rows_BT1 = rows_BT1.pin_memory().to(self.trial.device, non_blocking=True)
        state.data_seconds += time.perf_counter() - began
        loss = self._fitting(lambda micro: self.stepper.gradients(rows_BT1, micro))
        norm = self.stepper.update(self.config.schedule.multiplier(state.step, self.n_steps))
        state.step += 1
        self.unread.append((loss, norm))

    def _read(self) -> None:
        """Bring unread losses and norms to the host, into the history, and judge them in order."""
        if not self.unread:
            return
        values = [(float(loss), float(norm)) for loss, norm in self.unread]
        seconds = (time.perf_counter() - self.unread_since) / len(values)
        first = self.state.step - len(values) + 1
        self.unread.clear()
        for step, (loss, norm) in enumerate(values, first):
            self.steps_read += 1
            counted = seconds if self.steps_read > meters.WARMUP_STEPS else float("nan")
            self.state.history.append(loss, norm, counted)
            self.state.seconds += seconds
            why = self._judge(loss, norm)
            if why is not None and self.diverged is None:
                self.diverged = {"kind": "diverged", "step": step, "why": why}

    def _judge(self, loss: float, norm: float) -> str | None:
        state = self.state
        if self.stepper.scaler is None:
            return self.divergence.see(loss, norm)
        overflowed = norm != norm or norm in (float("inf"), float("-inf"))
        state.skipped_steps += overflowed
        state.consecutive_skips = state.consecutive_skips + 1 if overflowed else 0
        if state.consecutive_skips >= MAX_CONSECUTIVE_SKIPS:
            return f"fp16 gradients overflowed {state.consecutive_skips} times in a row, at ever smaller loss scales"
        return self.divergence.see(loss, None)

    # ---- memory

    def _fitting(self, work: Callable[[int], T]) -> T:
        """`work(micro_batch_size)`, with the size halved as often as it takes to fit in memory."""
        while True:
            try:
                return work(self.state.micro_batch_size)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error).strip().split("\n")[0][:200]
            # Outside the handler: the failed step's frames, and the tensors they hold, are gone.
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
        self._resize(size // 2, message)

    def _resize(self, micro_batch_size: int, why: str) -> None:
        old, self.state.micro_batch_size = self.state.micro_batch_size, micro_batch_size
        if old != micro_batch_size:
            step = self.state.step + 1
            event = {"kind": "micro_batch", "step": step, "from": old, "to": micro_batch_size, "why": why}
            self.state.events.append(event)
            self.new_events.append(event)

    # ---- evaluation, reports, end

    def _evaluate(self) -> Outcome | None:
        step = self.state.step
        with process.rng_kept():
            score = self._fitting(self._score)
        row = {
            **self._row(),
            "val_loss": score.loss,
            "val_perplexity": score.perplexity,
            "val_bits_per_byte": score.bits_per_byte,
        }
        if step in self.calendar.scheduled and self.state.early_stop.see(score.loss):
            return self._finish(self._converged())
        self.recorder.add(row)
        if step in self.calendar.rungs:
            self._checkpoint()
        self.recorder.beat(step)
        return self._obey(self.report(dict(row)), row)

    def _score(self, batch_size: int) -> lm.LMScore:
        return lm.score(
            self.model,
            self.cache,
            "validation",
            self.seq_len,
            self.trial.evaluate.val_tokens,
            batch_size,
            self.config.precision,
        )

    def _obey(self, directive: Directive, row: Mapping[str, Any]) -> Outcome | None:
        step = self.state.step
        if isinstance(directive, Continue):
            return None
        if isinstance(directive, Stop):
            reason = dict(directive.reason)
        elif isinstance(directive, CheckpointAndExit):
            self._checkpoint()
            reason = {"kind": "paused"}
        else:
            raise TypeError(f"report returned {directive!r}; allowed: Continue, Stop(reason), CheckpointAndExit")
        self.recorder.end(STOPPED, step, reason, row)
        return Outcome(STOPPED, reason, step, row)

    def _converged(self) -> dict[str, Any]:
        return {"kind": "converged", "step": self.state.step, **self.state.early_stop.state()}

    def _finish(self, reason: dict[str, Any]) -> Outcome:
        """Final evaluation, checkpoint and status, all on disk; then the last report."""
        step, row = self.state.step, {**self._row(), "val_loss": None}
        if reason["kind"] != "diverged":
            with process.rng_kept():
                metrics, samples = self._fitting(self._final_metrics)
            row.update(metrics)
            self.attempt.write_json("samples", samples)
        row.update(self._figures())
        final = json.loads(dump_json(row))  # what a later call will find: NaN is None, with a flag
        self.recorder.add(row)
        if reason["kind"] != "diverged":
            self._checkpoint()
        self.recorder.end(FINISHED, step, reason, {**final, "events": self.state.events})
        self.finished = True
        self.report(dict(final))
        return Outcome(FINISHED, reason, step, final)

    def _final_metrics(self, batch_size: int) -> tuple[dict[str, Any], list[str]]:
        from fabric.evaluate.final import final_metrics

        return final_metrics(
            self.model,
            self.cache,
            self.trial.evaluate,
            seq_len=self.seq_len,
            batch_size=batch_size,
            seed=self.trial.seed,
            precision=self.config.precision,
        )
