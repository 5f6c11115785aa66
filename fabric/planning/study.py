"""A study: which trial comes next, when a trial stops, what a rate or a phase decides. No Ray, no torch loops.

The runner (Ray Tune's searcher and scheduler, or the inline loop) asks three things: `next_task`, `reported`,
`ended`. Every decision is a record in the store with its inputs, written once; a study built again from the same
job and store takes none anew and goes on where the last one was.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from fabric.evaluate.test import test_key
from fabric.job.document import JobError
from fabric.job.errors import explain
from fabric.job.load import Configuration, Job
from fabric.planning.choosing import phase_decision, rate_decision
from fabric.planning.conditions import Overrides, applies, check_phases, check_points
from fabric.planning.expand import Arm, arms_of_phase, arms_of_search, nuisance_points
from fabric.planning.match import MISMATCH_WARNED, matched_configuration
from fabric.planning.rungs import Rungs, last_value
from fabric.planning.tasks import Action, ArmRun, Machine, PhaseRun, Role, Task, Trial, headline
from fabric.planning.trial import TrialSpec, canonical_json, described
from fabric.store import FINISHED, Store
from models import flops_per_token, n_params, state_bytes
from models.parts import nearest

__all__ = ["Action", "ArmRun", "Machine", "PhaseRun", "Study", "Task", "Trial"]

PATH_FREE = {"minimal_pairs": None}


class Study:
    """The planner of one job at one scale on one store.

    `data_key` gives the content key of a data configuration (see `fabric.data.data_key`). With `dry`, nothing is
    written: this is what `fabric plan` uses. Raises JobError for a mistake in any arm of any phase.
    """

    def __init__(
        self, job: Job, store: Store, data_key: Callable[[Any], str], machine: Machine, *, dry: bool = False
    ) -> None:
        self.job, self.store, self.machine, self.dry = job, store, machine, dry
        self.search = job.config.search
        self._data_key = data_key
        self.trials: dict[str, Trial] = {}
        self.phases: list[PhaseRun] = []
        self.warnings: list[str] = []
        self.skipped: list[str] = []
        self.base = job.configure()
        self.points = nuisance_points(job)
        self._carried = [Arm("")]
        self._check()
        self.id = self._study_id()
        self.rungs = Rungs(self.id, self.search, store, dry)
        self._record("job", self._job_body())
        self._tested: set[str] = set()
        self.untested: set[str] = set()  # trials whose test split could not be read
        self._open_next_phase()

    # -- identity and records ------------------------------------------------------------------------------

    def _study_id(self) -> str:
        """A hash of what is compared and how; not of names, resources or cadences."""
        probe = self._spec(self.base, seed=0)
        evaluate = described(probe.evaluate.model_copy(update=PATH_FREE))
        body = [probe.identity(), described(self.search), evaluate]
        return hashlib.sha256(canonical_json(body).encode()).hexdigest()[:12]

    def _job_body(self) -> dict[str, Any]:
        select = self.search.select.model_dump(mode="json")
        head = {"name": self.job.name, "scale": self.job.scale, "study": self.id, "created": time.time()}
        return {**head, "select": select, "job": self.job.document.data}

    def _spec(self, configuration: Configuration, seed: int) -> TrialSpec:
        return TrialSpec(
            model=configuration.model,
            data=configuration.data,
            data_key=self._data_key(configuration.data),
            train=configuration.train,
            evaluate=configuration.evaluate,
            seed=seed,
            threads=self.machine.threads,
            device=self.machine.device,
        )

    def _record(self, name: str, body: Mapping[str, Any]) -> None:
        if not self.dry:
            self.store.write_study(self.id, name, body)

    # -- the job, checked -------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Find mistakes in any phase, and settings that would have no effect."""
        search, first = self.search, self.points[0].overrides
        if search.mode == "phases":
            own = [a for i, p in enumerate(search.phases) for a in arms_of_phase(self.job, i, p)]
        else:
            own = arms_of_search(self.job)
        check_points(self.job, self.points, own)
        check_phases(self.job, lambda overrides: self._configured(overrides + first))
        stops = search.scheduler.kind != "fifo"
        if stops and len(self.points) == 1 and search.compete == "rates":
            self.warnings.append(
                f"scheduler {search.scheduler.kind} has nothing to compare: there is no nuisance axis, and "
                "search.compete is rates"
            )
        if not stops and search.compete == "arms":
            self.warnings.append(
                f"compete: arms has no effect with scheduler {search.scheduler.kind}, which stops nothing"
            )

    def _configured(self, overrides: Overrides) -> tuple[Configuration, float | None]:
        """The configuration of some overrides, its width solved where the job says `match`, and the mismatch."""
        return matched_configuration(self.job, self.job.configure(overrides), self.base)

    # -- phases ---------------------------------------------------------------------------------------------

    @property
    def phase_names(self) -> list[str]:
        return [p.name for p in self.search.phases] if self.search.mode == "phases" else ["main"]

    @property
    def is_fully_planned(self) -> bool:
        """Whether every trial there will be is known: the last phase is open and all its rates are chosen."""
        is_last = len(self.phases) + len(self.skipped) == len(self.phase_names)
        return is_last and all(a.is_settled for p in self.phases for a in p.arms)

    def _open_next_phase(self) -> None:
        """Open the next phase that is not decided yet; decided ones are passed through by their records."""
        while (index := len(self.phases) + len(self.skipped)) < len(self.phase_names):
            run = self._phase_run(index)
            if run is None:
                self.skipped.append(self.phase_names[index])
                continue
            self.phases.append(run)
            self._note_plan(run)
            self._settle(run)
            if run.decision is None:
                return

    def _phase_run(self, index: int) -> PhaseRun | None:
        """A phase on what was adopted before; None where its condition does not hold, or none of its arms fits."""
        if self.search.mode != "phases":
            arms = [self._arm_run("main", i, a) for i, a in enumerate(arms_of_search(self.job))]
            return PhaseRun(index, "main", arms, self._baseline_asked(arms), keep=1)
        phase = self.search.phases[index]
        carried = [c for c in self._carried if applies(self.job, phase.when, c.overrides)]
        if not carried or carried[0] is not self._carried[0]:
            return None
        arms = []
        for base in carried:
            for own in arms_of_phase(self.job, index, phase):
                name = f"{base.name} + {own.name}" if len(carried) > 1 else own.name
                try:
                    arms.append(
                        self._arm_run(phase.name, len(arms), Arm(name, base.overrides + own.overrides))
                    )
                except JobError as error:
                    self.warnings.append(f"{phase.name}/{name}: left out, it does not fit: {error}")
        if not arms:
            self.warnings.append(f"{phase.name}: none of its arms fits what was adopted before; skipped")
            return None
        return PhaseRun(index, phase.name, arms, self._baseline_adopted(index, arms, carried[0]), phase.keep)

    def _baseline_asked(self, arms: list[ArmRun]) -> str:
        """What the job calls the baseline; else the arm that is the base itself; else the first."""
        names, wanted = [a.arm.name for a in arms], self.search.baseline
        if wanted is not None and wanted not in names:
            close = nearest(wanted, names)
            hint = f"; did you mean {close!r}?" if close else ""
            message = f"{wanted!r} is no arm{hint} (allowed: {', '.join(names)})"
            raise explain(self.job.document, ("search", "baseline"), message)
        return wanted or self._same_as(Arm(""), arms) or names[0]

    def _baseline_adopted(self, index: int, arms: list[ArmRun], carried: Arm) -> str:
        """The arm that is what the phases before adopted; else the first, with a warning from the second phase on."""
        same, first = self._same_as(carried, arms), arms[0].arm.name
        if same is None and index > 0:
            name = self.phase_names[index]
            self.warnings.append(
                f"{name}: what was adopted before is not among its arms; {first} is its baseline"
            )
        return same or first

    def _same_as(self, arm: Arm, arms: list[ArmRun]) -> str | None:
        before = self._configured(arm.overrides)[0]
        return next((a.arm.name for a in arms if a.configuration == before), None)

    def _arm_run(self, phase: str, index: int, arm: Arm) -> ArmRun:
        configuration, mismatch = self._configured(arm.overrides)
        points = {p.name: self._configured(arm.overrides + p.overrides)[0] for p in self.points}
        if mismatch is not None and abs(mismatch) > MISMATCH_WARNED:
            self.warnings.append(
                f"{phase}/{arm.name}: {self.search.match} differ by {mismatch:+.1%} from the base's after matching"
            )
        run = ArmRun(arm, index, configuration, mismatch, points)
        if len(points) > 1:
            seeds = self.search.tuning_seeds
            run.tuning = [self._trial(run, phase, p, "tuning", s) for p in points for s in seeds]
        return run

    # -- trials -----------------------------------------------------------------------------------------------

    def _planned(self, run: ArmRun, phase: str, point: str, role: Role, seed: int) -> Trial:
        spec = self._spec(run.configurations[point], seed)
        judged = role == "tuning" or self.search.compete == "arms"
        rungs = self._rungs_of(spec) if judged else ()
        return Trial(spec, spec.id, phase, run.arm.name, point, role, seed, rungs)

    def _trial(self, run: ArmRun, phase: str, point: str, role: Role, seed: int) -> Trial:
        """A trial of this study; the same configuration and seed under another name is trained once."""
        trial = self._planned(run, phase, point, role, seed)
        known = self.trials.setdefault(trial.id, trial)
        if known is trial:
            self._look_up(trial)
        return known

    def preview(self, phase: PhaseRun, arm: ArmRun) -> list[Trial]:
        """What an arm's main trials would be with its first point (the rate is not chosen yet); none is kept."""
        if arm.out:
            return []
        point = next(iter(arm.configurations))
        return [self._planned(arm, phase.name, point, "main", s) for s in self.search.seeds]

    def _rungs_of(self, spec: TrialSpec) -> tuple[int, ...]:
        """The rule's rungs, moved up to whole steps."""
        per_step = spec.train.batch_size * spec.data.seq_len
        n_steps = spec.train.n_steps(spec.data.seq_len, n_params(spec.model))
        rungs = self.search.scheduler.rungs(n_steps * per_step)
        steps = sorted({min(math.ceil(r / per_step), n_steps) for r in rungs} - {n_steps})
        return tuple(s * per_step for s in steps)

    def _look_up(self, trial: Trial) -> None:
        """Take over what the store knows: the end, the decisions taken, the values seen at rungs."""
        record = self.store.trial(trial.id)
        for rung in trial.rungs:
            if decision := record.decision(f"{self.id}-{rung}"):
                trial.decisions[rung] = decision
        status = record.status()
        if status is None:
            return
        self._values_from(trial, record.metrics() if trial.rungs else [])
        if status.state == FINISHED:
            trial.state, trial.end = "ended", "finished"
        elif trial.is_stopped:
            trial.state, trial.end = "ended", "stopped"
        elif trial.is_undecided:
            trial.state = "paused"

    def _values_from(self, trial: Trial, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row.get("tokens") in trial.rungs and "val_loss" in row:
                trial.rung_values[row["tokens"]] = row["val_loss"]

    def _note_plan(self, run: PhaseRun) -> None:
        arms = [self._arm_body(a) for a in run.arms]
        body = {"phase": run.name, "index": run.index, "baseline": run.baseline, "arms": arms}
        self._record(f"plan-{run.index}", body)

    def _arm_body(self, run: ArmRun) -> dict[str, Any]:
        model, seq_len = run.configuration.model, run.configuration.data.seq_len
        return {
            "name": run.arm.name,
            "overrides": {o.path: o.value for o in run.arm.overrides},
            "mismatch": run.mismatch,
            "n_params": n_params(model),
            "flops_per_token": 3 * flops_per_token(model, seq_len),
            "state_bytes": state_bytes(model, seq_len, 2),
            "tuning": [{"id": t.id, "point": t.point, "seed": t.seed} for t in run.tuning],
        }

    # -- what a runner asks -----------------------------------------------------------------------------------

    def next_task(self) -> Task | Literal["wait", "done"]:
        """The next thing to do; "wait" while something that runs must end first; "done" at the end."""
        while self.phases and self.phases[-1].decision is None:
            run = self.phases[-1]
            self._settle(run)
            if run.decision is not None:
                self._open_next_phase()
                continue
            task = self._next_training(run)
            if task is None:
                # Nothing to hand out and nothing under way would be a study that never ends.
                assert any(t.state in ("running", "leaving") for t in run.trials()), run
            return task or "wait"
        # What had failed, or was lost, when its phase was decided: the table is completed.
        return self._first_waiting(self.main_trials()) or self._next_test()

    def _next_training(self, run: PhaseRun) -> Task | None:
        # Tuning that was cut off (failed, say) before its arm's rate was chosen has nothing left to decide.
        return self._first_waiting([t for a in run.arms for t in a.main or ([] if a.out else a.tuning)])

    def _first_waiting(self, trials: list[Trial]) -> Task | None:
        for trial in trials:
            if trial.state == "waiting":
                trial.state = "running"
                return Task("train", trial)
        return None

    def finished(self) -> bool:
        """Whether nothing is left to do (asked before Ray is started, so that a re-run is quick)."""
        if self.phases and self.phases[-1].decision is None:
            return False
        return all(t.state == "ended" and self._is_tested(t) for t in self.main_trials())

    def _is_tested(self, trial: Trial) -> bool:
        """Whether a trial's test split has been read, or never will be (it diverged, failed or was stopped)."""
        if trial.end != FINISHED:
            return True
        record = self.store.trial(trial.id)
        status = record.status()
        diverged = status is None or (status.reason or {}).get("kind") == "diverged"
        return diverged or record.evaluation(test_key(trial.spec)) is not None

    def _next_test(self) -> Task | Literal["wait", "done"]:
        for trial in self.main_trials():
            if trial.id not in self._tested:
                self._tested.add(trial.id)
                if not self._is_tested(trial):
                    return Task("test", trial)
        return "wait" if any(t.state in ("running", "leaving") for t in self.trials.values()) else "done"

    def main_trials(self) -> list[Trial]:
        """The trials that results are made of, each once."""
        return list({t.id: t for p in self.phases for t in p.main()}.values())

    def reported(self, trial_id: str, row: Mapping[str, Any]) -> Action:
        """What a trial does after reporting a row: go on, stop for good, or leave its place until its rung decides."""
        trial = self.trials[trial_id]
        rung = row.get("tokens")
        if rung not in trial.rungs or trial.state != "running":
            return "stop" if trial.end == "stopped" else "continue"
        trial.rung_values[rung] = row.get("val_loss")
        self._judge_phases_of(trial)
        decision = trial.decisions.get(rung)
        if decision is None:
            trial.state = "leaving"
            return "pause"
        if decision["stop"]:
            trial.state, trial.end = "ended", "stopped"
            return "stop"
        return "continue"

    def ended(self, trial_id: str, error: str | None = None, out_of_memory: bool = False) -> None:
        """A worker let go of a trial: because it finished, was told to, or failed with `error`."""
        trial = self.trials[trial_id]
        record = self.store.trial(trial_id)
        status = record.status()
        if status is not None and status.state == FINISHED:
            trial.state, trial.end = "ended", "finished"
            self._values_from(trial, record.metrics() if trial.rungs else [])
            if not self.dry and status.attempt > 1:
                record.drop_older_checkpoints()
        elif trial.state == "leaving":
            trial.state = "paused"
        elif trial.state == "running":
            self._failed(trial, error, out_of_memory)
        self._judge_phases_of(trial)

    def tested(self, trial_id: str, error: str | None = None) -> None:
        """A worker let go of a test task; one that failed is given out again as often as a trial is."""
        if error is None:
            return
        trial = self.trials[trial_id]
        trial.failures += 1
        if trial.failures <= self.job.config.resources.max_retries:
            self._tested.discard(trial_id)
        else:
            self.untested.add(trial_id)
            where = f"{trial.phase}/{trial.arm} seed {trial.seed}"
            self.warnings.append(f"{where}: the test split was not read: {headline(error)}")

    def _failed(self, trial: Trial, error: str | None, out_of_memory: bool) -> None:
        self._note_failure(trial, error)
        # A smaller micro-batch is another try, not a repetition: it does not count as one.
        if not (out_of_memory and self._halve_micro_batch(trial)):
            trial.failures += 1
        if trial.failures <= self.job.config.resources.max_retries:
            trial.state = "waiting"
            return
        trial.state, trial.end = "ended", "failed"
        where = f"{trial.phase}/{trial.arm} {trial.point}".rstrip()
        self.warnings.append(f"{where} seed {trial.seed} failed: {headline(error or 'its worker died')}")

    def _note_failure(self, trial: Trial, error: str | None) -> None:
        """Record why an attempt failed: a killed worker's last word is that it runs."""
        if not self.dry:
            record = self.store.trial(trial.id)
            attempt = max(record.attempt_numbers(), default=0)
            body = {"failed_attempt": attempt, "error": error or "no message", "study": self.id}
            record.write_decision(f"{self.id}-failure-{attempt}", body)

    def _halve_micro_batch(self, trial: Trial) -> bool:
        """Decide a smaller micro-batch; False when it cannot be smaller."""
        now = self.micro_batch_size(trial) or trial.spec.train.micro_batch_size or trial.spec.train.batch_size
        if now == 1:
            return False
        smaller = next(m for m in range(now // 2, 0, -1) if trial.spec.train.batch_size % m == 0)
        if not self.dry:
            body = {"micro_batch_size": smaller, "because": "the worker ran out of memory"}
            self.store.trial(trial.id).write_decision(f"{self.id}-memory-{smaller:09d}", body)
        return True

    def micro_batch_size(self, trial: Trial) -> int | None:
        """The micro-batch decided after running out of memory, or None."""
        decisions = self.store.trial(trial.id).decisions(f"{self.id}-memory-")
        return min((int(d["micro_batch_size"]) for d in decisions), default=None)

    # -- decisions --------------------------------------------------------------------------------------------

    def _judge_phases_of(self, trial: Trial) -> None:
        for run in self.phases:
            if any(t is trial for t in run.trials()):
                self.rungs.judge(run)

    def _settle(self, run: PhaseRun) -> None:
        """Take every decision that is due: rungs', rates of arms whose tuning has ended, then the phase's."""
        self.rungs.judge(run)
        for arm in run.arms:
            if self._known_rate(run, arm) or all(t.state == "ended" for t in arm.tuning):
                self._choose_rate(run, arm)
        self.rungs.judge(run)
        if self.store.study(self.id, f"decision-{run.index}") is not None or (
            all(a.is_settled for a in run.arms) and all(t.state == "ended" for t in run.main())
        ):
            self._decide(run)

    def _known_rate(self, run: PhaseRun, arm: ArmRun) -> bool:
        return not arm.is_settled and self.store.study(self.id, f"rate-{run.index}-{arm.index}") is not None

    def _choose_rate(self, run: PhaseRun, arm: ArmRun) -> None:
        if arm.is_settled:
            return
        name = f"rate-{run.index}-{arm.index}"
        taken = self.store.study(self.id, name)
        if taken is None:
            taken = rate_decision(arm, self.points, len(self.search.tuning_seeds), self._last_value)
        point = taken["point"]
        if point is None:
            arm.out = True
            self.warnings.append(f"{run.name}/{arm.arm.name}: no rate trained to its end; the arm is out")
        else:
            arm.main = [self._trial(arm, run.name, point, "main", s) for s in self.search.seeds]
            taken = {**taken, "trials": [{"id": t.id, "seed": t.seed} for t in arm.main]}
        if taken.get("warning"):
            self.warnings.append(f"{run.name}/{arm.arm.name}: {taken['warning']}")
        self._record(name, {"arm": arm.arm.name, **taken})

    def _decide(self, run: PhaseRun) -> None:
        name = f"decision-{run.index}"
        taken = self.store.study(self.id, name)
        if taken is None:
            bodies = [self._arm_body(a) for a in run.arms]
            taken = phase_decision(run, bodies, self.search.select, self._last_value)
            self._record(name, taken)
        run.decision = taken
        by_name = {a.arm.name: a.arm for a in run.arms}
        self._carried = [by_name[n] for n in taken["kept"] or [taken["winner"]]]

    def _last_value(self, trial: Trial) -> float | None:
        return last_value(self.store, trial)
