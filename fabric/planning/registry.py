"""The trials of a study: what each is, what the store knows of it, and what is recorded about it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from fabric.evaluate.config import PLACES
from fabric.job.load import Configuration, Job
from fabric.planning.tasks import ArmRun, Cause, Machine, Role, Trial
from fabric.planning.trial import TrialSpec, canonical_json, described
from fabric.store import FINISHED, Store, TrialRecord
from models import n_params

PATH_FREE: dict[str, None] = dict.fromkeys(PLACES)


class Registry:
    """All trials of one study on one store, each once; `id` is the study's.

    With `dry`, nothing is written. With `strict`, only what was trained under this machine's numerics counts.
    """

    def __init__(
        self,
        job: Job,
        store: Store,
        data_key: Callable[[Any], str],
        machine: Machine,
        *,
        dry: bool,
        strict: bool,
    ) -> None:
        self.job, self.store, self.machine, self.dry, self.strict = job, store, machine, dry, strict
        self.search = job.config.search
        self.data_key = data_key
        self.trials: dict[str, Trial] = {}
        self.foreign: list[Trial] = []  # finished ones that were trained under other numerics
        self.unmeasured: list[Trial] = []  # finished ones whose final measurements were others
        self.id = self._study_id()

    def begin(self) -> None:
        """Record the job, and that it is run now."""
        job, select = self.job, self.search.select.model_dump(mode="json")
        head = {"name": job.name, "scale": job.scale, "study": self.id, "created": time.time()}
        self.write(
            "job", {**head, "strict_numerics": self.strict, "select": select, "job": job.document.data}
        )
        if not self.dry:
            self.store.note_use(self.id)

    def _study_id(self) -> str:
        """A hash of what is compared and how; not of names, resources or cadences."""
        probe = self.spec(self.job.configure(), seed=0)
        evaluate = described(probe.evaluate.model_copy(update=PATH_FREE))
        body = [probe.identity(), described(self.search), evaluate]
        if self.strict:
            body.append({"numerics": _fingerprint(probe)})
        return hashlib.sha256(canonical_json(body).encode()).hexdigest()[:12]

    def spec(self, configuration: Configuration, seed: int) -> TrialSpec:
        return TrialSpec(
            model=configuration.model,
            data=configuration.data,
            data_key=self.data_key(configuration.data),
            train=configuration.train,
            evaluate=configuration.evaluate,
            seed=seed,
            weights=None if configuration.start is None else configuration.start.key,
            threads=self.machine.threads,
            device=self.machine.device,
            ranks=self.machine.ranks,
        )

    def trial_id(self, configuration: Configuration) -> str:
        """What a configuration's trials have in common, as an id."""
        return self.spec(configuration, seed=0).id

    def planned(self, run: ArmRun, phase: str, point: str, role: Role, seed: int) -> Trial:
        """A trial as it would be; it is not kept."""
        spec = self.spec(run.configurations[point], seed)
        judged = role == "tuning" or self.search.compete == "arms"
        rungs = self._rungs_of(spec) if judged else ()
        numerics = _fingerprint(spec) if self.strict else None
        return Trial(spec, spec.id, phase, run.arm.name, point, role, seed, rungs, numerics)

    def trial(self, run: ArmRun, phase: str, point: str, role: Role, seed: int) -> Trial:
        """A trial of this study; the same configuration and seed under another name is trained once."""
        trial = self.planned(run, phase, point, role, seed)
        known = self.trials.setdefault(trial.id, trial)
        if known is trial:
            self._look_up(trial)
        return known

    def _rungs_of(self, spec: TrialSpec) -> tuple[int, ...]:
        """The rule's rungs, moved up to whole steps."""
        per_step = spec.train.batch_size * spec.data.seq_len
        n_steps = spec.train.n_steps(spec.data.seq_len, n_params(spec.model))
        rungs = self.search.scheduler.rungs(n_steps * per_step)
        steps = sorted({math.ceil(r / per_step) for r in rungs} - {n_steps})
        return tuple(s * per_step for s in steps)

    def _look_up(self, trial: Trial) -> None:
        """Take over what the store knows: the end, the decisions taken, the values seen at rungs."""
        record = self.record(trial)
        for rung in trial.rungs:
            if decision := record.decision(f"{self.id}-{rung}"):
                trial.decisions[rung] = decision
        status = record.status()
        if status is None:
            return
        if not self.dry and record.spec() is None:  # damaged; the id says what it was
            record.write_spec(trial.spec.model_dump(mode="json"))
        self.note_values(trial)
        if status.state == FINISHED:
            if self.final(trial) is None:
                self.unmeasured.append(trial)
            else:
                trial.state, trial.end = "ended", "finished"
            if record.fingerprint(status.attempt) not in (None, _fingerprint(trial.spec)):
                self.foreign.append(trial)
        elif trial.is_stopped:
            trial.state, trial.end = "ended", "stopped"
        elif trial.is_undecided:
            trial.state = "paused"

    def note_values(self, trial: Trial) -> None:
        """The values a trial's record has at its rungs, measured over as many tokens as this study's."""
        wanted = trial.spec.evaluate.val_tokens
        for row in self.record(trial).metrics() if trial.rungs else ():
            if (
                row.get("tokens") in trial.rungs
                and "val_loss" in row
                and row.get("val_tokens", wanted) == wanted
            ):
                trial.rung_values[row["tokens"]] = row["val_loss"]

    def final(self, trial: Trial) -> Mapping[str, Any] | None:
        """A finished trial's last row, measured as this study asks; None before that."""
        return self.record(trial).final(trial.spec.evaluation_key)

    def last_value(self, trial: Trial) -> float | None:
        """A trial's final validation loss; None when it diverged or has none."""
        return (self.final(trial) or {}).get("val_loss")

    # -- records ----------------------------------------------------------------------------------------------

    def record(self, trial: Trial) -> TrialRecord:
        """A trial's record, as this study reads it."""
        return self.store.trial(trial.id, trial.numerics)

    def write(self, name: str, body: Mapping[str, Any]) -> None:
        """Record something of the study, once."""
        if not self.dry:
            self.store.write_study(self.id, name, body)

    def read(self, name: str) -> dict[str, Any] | None:
        return self.store.study(self.id, name)

    def note_failure(self, trial: Trial, error: str | None, cause: Cause) -> None:
        """Record why an attempt failed: a killed worker's last word is that it runs."""
        if not self.dry:
            record = self.record(trial)
            attempt = max(record.attempt_numbers(), default=0)
            body = {
                "failed_attempt": attempt,
                "error": error or "no message",
                "cause": cause,
                "study": self.id,
            }
            record.write_decision(f"{self.id}-failure-{attempt}", body)

    def halve_micro_batch(self, trial: Trial) -> bool:
        """Decide a smaller micro-batch; False when it cannot be smaller."""
        train = trial.spec.train
        share = train.batch_size // trial.spec.ranks.most  # of a rank: no micro-batch is larger
        now = min(share, self.micro_batch_size(trial) or train.micro_batch_size or share)
        if now <= 1:
            return False
        smaller = next(m for m in range(now // 2, 0, -1) if train.batch_size % m == 0)
        if not self.dry:
            body = {"micro_batch_size": smaller, "because": "the worker ran out of memory"}
            self.record(trial).write_decision(f"{self.id}-memory-{smaller:09d}", body)
        return True

    def micro_batch_size(self, trial: Trial) -> int | None:
        """The micro-batch decided after running out of memory, or None."""
        decisions = self.record(trial).decisions(f"{self.id}-memory-")
        return min((int(d["micro_batch_size"]) for d in decisions), default=None)


def _fingerprint(spec: TrialSpec) -> str:
    """What bit-equality is promised within, were the trial trained here and now."""
    from fabric.train.process import numerics

    return str(numerics(spec)["fingerprint"])
