"""The training loop: plain PyTorch, the same inline, in a Tune trial and in a worker group.

`run` is idempotent. Killed at any moment and called again, it goes on from the newest checkpoint and ends with the
numbers of an undisturbed run, bit for bit (within one numerics fingerprint).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.evaluate import lm
from fabric.evaluate.final import trial_tasks
from fabric.store import FAILED, FINISHED, RUNNING, STOPPED, dump_json
from fabric.train import process
from fabric.train.calendar import calendar
from fabric.train.checkpoint import newest_checkpoint, save_checkpoint
from fabric.train.directive import (
    PREEMPTED,
    CheckpointAndExit,
    Continue,
    Directive,
    Leaving,
    Outcome,
    Report,
    Stop,
    keep_going,
    never,
)
from fabric.train.engine import Engine
from fabric.train.group import ALONE, Group, Pace
from fabric.train.memory import is_out_of_memory
from fabric.train.recorder import Recorder

if TYPE_CHECKING:
    from fabric.data import TokenCache
    from fabric.data.stream import Read
    from fabric.planning.trial import TrialSpec
    from fabric.store import Attempt, Status, TrialRecord


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
    weights: Path | None = None,
    group: Group = ALONE,
    leaving: Leaving = never,
    read: Read | None = None,
) -> Outcome:
    """Train `trial` to its end, or to where `report` says; returns how it ended.

    `report(row)` is called once an evaluation: at the steps that reach `rung_tokens`, the scheduled ones and the end.
    A rung's checkpoint is on disk before its report; everything final is on disk before the last report. A finished
    trial trains nothing and reports its final row, measured again when `trial.evaluate` wants other measurements. An
    evaluated row on disk whose report may not have been delivered (the process died) is reported again on resume.
    `micro_batch_size` overrides the trial's and a checkpoint's; `weights` is the file whose hash `trial.weights` is.
    Every rank of a `group` calls it alike; rank 0 alone writes, reports and decides. Where `leaving()` holds after a
    step, a checkpoint is written and the run ends ("preempted"). `read` is how a stream's units are read (None: in this
    process).

    Divergence is an `Outcome`, not an error. Raises what went wrong otherwise, after writing it to the status:
    `OutOfMemory` when not even a micro-batch of one fits; SystemExit and KeyboardInterrupt leave the trial resumable.
    """
    before = group.told(record.status())
    if before is not None and before.state == FINISHED:
        from fabric.evaluate.again import final_row

        final = group.told(final_row(trial, record, cache) if group.leads else {})
        if group.leads:
            report(dict(final))
        return Outcome(FINISHED, before.reason or {}, before.step, final)
    process.settle(trial)
    newest = newest_checkpoint(record, group.told(record.checkpoints()))
    _must_agree(group, None if newest is None else newest[0].step)
    resumed = (newest[0].step, newest[0].attempt) if newest else (0, None)
    who = {**(provenance or {}), **process.provenance(trial), "evaluation": trial.evaluation_key}
    who["order"] = trial.data.order
    who["ranks"] = {"world": group.world, "engine": trial.ranks.engine, "zero_stage": trial.ranks.zero_stage}
    if record.numerics not in (None, who["numerics"]["fingerprint"]):
        raise ValueError(
            f"this process computes under numerics {who['numerics']}, the sweep asked for fingerprint "
            f"{record.numerics} (--strict-numerics needs one kind of machine); run without it, or on one kind"
        )
    who |= {"resumed_step": resumed[0], "resumed_attempt": resumed[1]}
    attempt = record.new_attempt(who) if group.leads else record.unwritten_attempt()
    training: _Training | None = None
    try:
        with _no_collection():
            training = _Training(
                trial, attempt, cache, report, rung_tokens, clock, weights, group, leaving, read
            )
            if newest is not None:
                training.resume(newest[1], record, before)
                newest = None  # its bytes are as large as the model and the optimizer
            training.begin(micro_batch_size)
            return training.train()
    except BaseException as error:
        _write_end(attempt, training, error)
        raise
    finally:
        if training is not None and training.engine.stream is not None:
            training.engine.stream.close()


def _must_agree(group: Group, step: int | None) -> None:
    """Raises ValueError, on every rank, where the ranks would go on from different checkpoints."""
    steps = group.gathered(step)
    if len(set(steps)) > 1:
        found = ", ".join(f"rank {i}: {'none' if s is None else f'step {s}'}" for i, s in enumerate(steps))
        raise ValueError(
            f"the ranks find different checkpoints to go on from ({found}): keep the records where all nodes see "
            "them, in a shared folder or at an s3:// URL (--out)"
        )


# Extension modules count what is still frozen when the interpreter ends as leaked, and say so on stderr.
atexit.register(gc.unfreeze)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection in mid-step: heartbeats collect.

    What is alive now, mostly modules, is never looked at again (it takes 0.2 s each time); it stays frozen for the
    process's next trials and until it ends. The trial's own objects are built afterwards and stay collectable.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _write_end(attempt: Attempt, training: _Training | None, error: BaseException) -> None:
    """Say in the status how an exception ended the attempt; out of the last report, all is on disk already."""
    if training is not None and training.finished:
        return
    step = training.engine.state.step if training else 0
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
    """One attempt at a trial: the engine, when it is looked at, and what is written down."""

    def __init__(
        self,
        trial: TrialSpec,
        attempt: Attempt,
        cache: TokenCache,
        report: Report,
        rung_tokens: Sequence[int],
        clock: Callable[[], float],
        weights: Path | None,
        group: Group,
        leaving: Leaving,
        read: Read | None,
    ) -> None:
        self.group, self.leaving, self.pace = group, leaving, Pace(group, clock)
        self.trial, self.config, self.cache, self.report = trial, trial.train, cache, report
        self.attempt, self.recorder = attempt, Recorder(attempt, trial.train.checkpoint, clock)
        self.engine = Engine(trial, cache, weights, group, read)
        self.tasks = trial_tasks(trial, cache) if group.leads else None
        self.n_steps = self.engine.n_steps
        self.calendar = calendar(self.n_steps, self.engine.tokens_per_step, trial.evaluate, rung_tokens)
        self.redeliver: dict[str, Any] | None = None
        self.finished = False
        self.rows_from = 0  # the step after which the rows of a stream are still to be written down

    def resume(self, files: Mapping[str, bytes], record: TrialRecord, before: Status | None) -> None:
        """Take over a checkpoint; `before` is the status its process left."""
        self.engine.restore(files)
        step = self.engine.state.step
        self.recorder.saved_step = self.rows_from = step
        died = before is not None and before.state == RUNNING
        if died and self.calendar.evaluated(step):
            rows = [r for r in record.metrics() if r["step"] == step and "val_loss" in r]
            # Measured over other tokens it compares with nothing.
            same = rows and rows[-1].get("val_tokens") == self.trial.evaluate.val_tokens
            self.redeliver = rows[-1] if same else None

    def begin(self, micro_batch_size: int | None) -> None:
        """Apply the caller's micro-batch and write the first heartbeat."""
        if micro_batch_size is not None:
            self.engine.resize(micro_batch_size, "asked for by the caller")
        self.recorder.beat(self.engine.state.step)

    def train(self) -> Outcome:
        """From where the state is to the end."""
        state = self.engine.state
        if state.early_stop.exhausted:  # the process died between the last checkpoint and the last word
            return self._finish(self._converged())
        outcome = None
        if self.redeliver is not None and state.step < self.n_steps:
            outcome = self._obey(self._reported(self.redeliver), self.redeliver)
        while outcome is None and state.step < self.n_steps:
            outcome = self._next()
        return outcome or self._finish({"kind": "completed"})

    def _next(self) -> Outcome | None:
        engine = self.engine
        engine.step()
        step = engine.state.step
        evaluated = self.calendar.evaluated(step)
        logged = step % self.config.log_every_steps == 0
        if evaluated or logged:
            engine.read()
        if engine.diverged is not None:
            return self._finish(engine.diverged)
        if step == self.n_steps:
            return None
        if evaluated:
            outcome = self._evaluate()
            if outcome is not None:
                return outcome
        elif logged:
            self.recorder.add(engine.row())
        return self._keep_up(step)

    def _keep_up(self, step: int) -> Outcome | None:
        by_steps = self.recorder.due_by_steps(step)
        by_time, beat, leaves = self.pace.told(step, self._noticed, (False, False, False))
        if leaves:
            return self._obey(CheckpointAndExit({"kind": PREEMPTED}), {})
        if by_steps or by_time:
            self._checkpoint()
        if beat:
            self.recorder.beat(step)
            gc.collect()
        return None

    def _noticed(self) -> tuple[bool, bool, bool]:
        """Whether a checkpoint and a heartbeat are due, and whether any rank is to leave."""
        return (*self.recorder.due_by_time(), any(self.group.gathered(self.leaving())))

    def _checkpoint(self) -> None:
        """Rows, then the state they lead up to, unless it is on disk already or has diverged."""
        engine = self.engine
        engine.read()
        step = engine.state.step
        if self.recorder.saved_step == step or engine.diverged is not None:
            return
        self.recorder.flush()
        keep = self.config.checkpoint.keep_last
        weights, optimizer, saved = engine.stepper.weights(), engine.stepper.optimizer_state(), engine.saved()
        self._write_rows(step)
        if self.group.leads:
            save_checkpoint(self.attempt, step, weights, optimizer, saved, keep)
        self.recorder.saved(step)

    def _write_rows(self, step: int) -> None:
        """Which rows of a stream each rank has read since the last checkpoint, as `rows-<step>.json`."""
        if self.engine.stream is None:
            return
        ranks = self.engine.stream.taken()
        if self.group.leads:
            body = {"after_step": self.rows_from, "to_step": step, "ranks": ranks}
            self.attempt.write_json(f"rows-{step:010d}", body)
        self.rows_from = step

    # ---- evaluations, reports, end

    def _evaluate(self) -> Outcome | None:
        step = self.engine.state.step
        with process.aside(self.trial):
            score = self.engine.fitting(self._score)
        row = {
            **self.engine.row(),
            "val_loss": score.loss,
            "val_perplexity": score.perplexity,
            "val_bits_per_byte": score.bits_per_byte,
            "val_tokens": self.trial.evaluate.val_tokens,
            **self._task_scores(step),
        }
        if score.accuracy is not None:
            row |= {"val_accuracy": score.accuracy, "val_exact": score.exact}
        if step in self.calendar.scheduled and self.engine.state.early_stop.see(score.loss):
            return self._finish(self._converged())
        self.recorder.add(row)
        if step in self.calendar.rungs:
            self._checkpoint()
        self.recorder.beat(step)
        return self._obey(self._reported(row), row)

    def _task_scores(self, step: int) -> dict[str, float]:
        if step not in self.calendar.tasks:
            return {}
        with process.aside(self.trial), self.engine.stepper.whole() as model, lm.evaluating(model):
            return {} if self.tasks is None else self.tasks.measure(model)[0]

    def _reported(self, row: Mapping[str, Any]) -> Directive:
        return self.group.told(self.report(dict(row)) if self.group.leads else Continue())

    def _score(self, batch_size: int) -> lm.LMScore:
        with self.engine.stepper.whole() as model:
            return lm.score(
                model,
                self.cache,
                "validation",
                self.engine.seq_len,
                self.trial.evaluate.val_tokens,
                batch_size,
                self.config.precision,
                self.config.objective,
                self.group,
            )

    def _obey(self, directive: Directive, row: Mapping[str, Any]) -> Outcome | None:
        step = self.engine.state.step
        if isinstance(directive, Continue):
            return None
        if isinstance(directive, Stop):
            reason = dict(directive.reason)
        elif isinstance(directive, CheckpointAndExit):
            self._checkpoint()
            reason = dict(directive.reason)
        else:
            raise TypeError(
                f"report returned {directive!r}; allowed: Continue, Stop(reason), CheckpointAndExit"
            )
        self.recorder.end(STOPPED, step, reason, row or None)
        return Outcome(STOPPED, reason, step, row)

    def _converged(self) -> dict[str, Any]:
        state = self.engine.state
        return {"kind": "converged", "step": state.step, "best": state.early_stop.best}

    def _finish(self, reason: dict[str, Any]) -> Outcome:
        """Final evaluation, checkpoint and status, all on disk; then the last report."""
        step = self.engine.state.step
        row = {**self.engine.row(), "val_loss": None}
        if reason["kind"] != "diverged":
            with process.aside(self.trial):
                metrics, beside = self.engine.fitting(self._final_metrics)
            row |= metrics
            for name, value in beside.items():
                self.attempt.write_json(name, value)
        row |= self.engine.figures()
        row["events"] = self.engine.state.events
        self.recorder.add(row)
        self._checkpoint()
        final = json.loads(dump_json(row))  # what a later call will find: NaN is None, with a flag
        self.recorder.end(FINISHED, step, reason, final)
        self.finished = True
        self._reported(final)
        return Outcome(FINISHED, reason, step, final)

    def _final_metrics(self, batch_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
        from fabric.evaluate.final import final_metrics

        with self.engine.stepper.whole() as model:
            return final_metrics(
                model,
                self.cache,
                self.trial.evaluate,
                seq_len=self.engine.seq_len,
                batch_size=batch_size,
                seed=self.trial.seed,
                precision=self.config.precision,
                objective=self.config.objective,
                group=self.group,
                tasks=self.tasks,
            )
