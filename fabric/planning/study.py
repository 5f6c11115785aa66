"""A study: which trial comes next, when a trial stops, what a rate or a phase decides. No Ray, no torch loops.

The runner (Ray Tune's searcher and scheduler, or the inline loop) asks three things: `next_task`, `reported`,
`ended`. Every decision is a record in the store with its inputs, written once; a study built again from the same
job and store takes none anew and goes on where the last one was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from fabric.evaluate.test import test_key
from fabric.job.document import JobError
from fabric.job.errors import explain
from fabric.job.load import Configuration, Job
from fabric.planning.advice import advice, search_advice, tokenizer_advice
from fabric.planning.checks import (
    check_effects,
    check_match,
    check_objective,
    check_overlaps,
    check_points,
    overruled,
)
from fabric.planning.choosing import phase_decision, rate_decision
from fabric.planning.conditions import Overrides, applies, check_phases
from fabric.planning.expand import Arm, arms_of_phase, arms_of_search, nuisance_points
from fabric.planning.match import MISMATCH_WARNED, matched_configuration
from fabric.planning.registry import Registry
from fabric.planning.rungs import Rungs
from fabric.planning.tasks import Action, ArmRun, Cause, Machine, PhaseRun, Task, Trial, headline
from fabric.store import FINISHED, Store
from models import n_params, state_bytes
from models.parts import meant

__all__ = ["Action", "ArmRun", "Machine", "PhaseRun", "Study", "Task", "Trial"]


class Study:
    """The planner of one job at one scale on one store.

    `data_key` gives the content key of a data configuration (see `fabric.data.data_key`). With `dry`, nothing is
    written: this is what `fabric plan` uses. With `strict`, only what was trained under this machine's numerics
    counts (versions, instruction set, threads): the rest is trained again, in a study of its own. Raises JobError
    for a mistake in any arm of any phase.
    """

    def __init__(
        self,
        job: Job,
        store: Store,
        data_key: Callable[[Any], str],
        machine: Machine,
        *,
        dry: bool = False,
        strict: bool = False,
    ) -> None:
        self.job, self.store, self.dry = job, store, dry
        self.search = job.config.search
        self.phases: list[PhaseRun] = []
        self.warnings: list[str] = []
        self.skipped: list[str] = []
        self.base = job.configure()
        self.points = nuisance_points(job)
        self._carried = [Arm("")]
        self.registry = Registry(job, store, data_key, machine, dry=dry, strict=strict)
        self.id, self.trials = self.registry.id, self.registry.trials
        self._check()
        self.registry.begin()
        self.rungs = Rungs(self.registry)
        self._tested: set[str] = set()
        self.untested: set[str] = set()  # trials whose test split could not be read
        self._open_next_phase()

    # -- the job, checked -------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Find mistakes in any phase, and settings that would have no effect."""
        search, first = self.search, self.points[0].overrides
        if search.mode == "phases":
            groups = [arms_of_phase(self.job, i, p) for i, p in enumerate(search.phases)]
        else:
            groups = [arms_of_search(self.job)]
        for arms in [*groups, self.points]:
            check_overlaps(arms)
            check_match(self.job, arms)
            check_objective(self.base, arms, lambda overrides: self._configured(overrides)[0])
        check_points(self.job, self.points, [a for arms in groups for a in arms])
        for arms in groups:
            self.warnings += overruled(self.points, arms)
            check_effects(arms, lambda overrides: self._configured(overrides)[0], self.registry.trial_id)
        check_phases(self.job, lambda overrides: self._configured(overrides + first))
        self.warnings += search_advice(search, len(self.points))

    def _configured(self, overrides: Overrides) -> tuple[Configuration, float | None]:
        """The configuration of some overrides, its width solved where the job says `match`, and the mismatch."""
        return matched_configuration(self.job, self.job.configure(overrides), self.base)

    # -- phases ---------------------------------------------------------------------------------------------

    @property
    def notes(self) -> list[str]:
        """What a user should know: the warnings, and finished trials that were trained under other numerics."""
        configured = [(f"{p.name}/{a.arm.name}", a.configuration) for p in self.phases for a in p.arms]
        warnings = [*self.warnings, *tokenizer_advice(configured, self.registry.data_key, self.job.cache)]
        if not (foreign := len(self.registry.foreign)):
            return warnings
        were = "trial was" if foreign == 1 else "trials were"
        return [
            *warnings,
            f"{foreign} finished {were} trained under other numerics (versions, instructions or threads) than this "
            "machine's; --strict-numerics trains them again",
        ]

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
            hint = meant(wanted, names)
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
        for sentence in advice(self.job, configuration):
            if not any(w.endswith(sentence) for w in self.warnings):  # of arms alike, the first
                self.warnings.append(f"{phase}/{arm.name}: {sentence}")
        if mismatch is not None and abs(mismatch) > MISMATCH_WARNED:
            self.warnings.append(
                f"{phase}/{arm.name}: {self.search.match} differ by {mismatch:+.1%} from the base's after matching"
            )
        run = ArmRun(arm, index, configuration, mismatch, points)
        if len(points) > 1:
            seeds = self.search.tuning_seeds
            run.tuning = [self.registry.trial(run, phase, p, "tuning", s) for p in points for s in seeds]
        return run

    # -- trials -----------------------------------------------------------------------------------------------

    def preview(self, phase: PhaseRun, arm: ArmRun) -> list[Trial]:
        """What an arm's main trials would be with its first point (the rate is not chosen yet); none is kept."""
        if arm.out:
            return []
        point = next(iter(arm.configurations))
        return [self.registry.planned(arm, phase.name, point, "main", s) for s in self.search.seeds]

    def _note_plan(self, run: PhaseRun) -> None:
        arms = [self._arm_body(a) for a in run.arms]
        body = {"phase": run.name, "index": run.index, "baseline": run.baseline, "arms": arms}
        self.registry.write(f"plan-{run.index}", body)

    def _arm_body(self, run: ArmRun) -> dict[str, Any]:
        model, data = run.configuration.model, run.configuration.data
        forward = run.configuration.train.objective.flops_per_token(model, data.seq_len, data.n_asked)
        return {
            "name": run.arm.name,
            "overrides": {o.path: o.value for o in run.arm.overrides},
            "mismatch": run.mismatch,
            "n_params": n_params(model),
            "flops_per_token": 3 * forward,
            "state_bytes": state_bytes(model, data.seq_len, 2),
            "tuning": [{"point": t.point, **t.reference()} for t in run.tuning],
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
        return self._first_waiting(
            [t for a in run.arms for t in a.main or ([] if a.out else a.tuning_in_turn)]
        )

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
        record = self.registry.record(trial)
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

    def ended(self, trial_id: str, error: str | None = None, cause: Cause = "failure") -> None:
        """A worker let go of a trial: because it finished, was told to, or failed with `error` of some cause."""
        trial = self.trials[trial_id]
        if self.registry.final(trial) is not None:
            trial.state, trial.end = "ended", "finished"
            self.registry.note_values(trial)
            record = self.registry.record(trial)
            if not self.dry and len(record.attempt_numbers()) > 1:
                record.drop_older_checkpoints()
        elif trial.state == "leaving":
            trial.state = "paused"
        elif trial.state == "running":
            self._failed(trial, error, cause)
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

    def _failed(self, trial: Trial, error: str | None, cause: Cause) -> None:
        self.registry.note_failure(trial, error, cause)
        if cause == "preemption":  # the machine's doing, not the trial's
            trial.preemptions += 1
        # A smaller micro-batch is another try, not a repetition: it does not count as one.
        elif not (cause == "memory" and self.registry.halve_micro_batch(trial)):
            trial.failures += 1
        limits = self.job.config.resources
        if trial.failures <= limits.max_retries and trial.preemptions <= limits.max_preemptions:
            trial.state = "waiting"
            return
        trial.state, trial.end = "ended", "failed"
        where = f"{trial.phase}/{trial.arm} {trial.point}".rstrip()
        self.warnings.append(f"{where} seed {trial.seed} failed: {headline(error or 'its worker died')}")

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
        if self.registry.read(f"decision-{run.index}") is not None or (
            all(a.is_settled for a in run.arms) and all(t.state == "ended" for t in run.main())
        ):
            self._decide(run)

    def _known_rate(self, run: PhaseRun, arm: ArmRun) -> bool:
        return not arm.is_settled and self.registry.read(f"rate-{run.index}-{arm.index}") is not None

    def _choose_rate(self, run: PhaseRun, arm: ArmRun) -> None:
        if arm.is_settled:
            return
        name = f"rate-{run.index}-{arm.index}"
        taken = self.registry.read(name)
        if taken is None:
            taken = rate_decision(arm, self.points, len(self.search.tuning_seeds), self.registry.last_value)
        point = taken["point"]
        if point is None:
            arm.out = True
            self.warnings.append(f"{run.name}/{arm.arm.name}: no rate trained to its end; the arm is out")
        else:
            arm.main = [self.registry.trial(arm, run.name, point, "main", s) for s in self.search.seeds]
            taken = {**taken, "trials": [t.reference() for t in arm.main]}
        if taken.get("warning"):
            self.warnings.append(f"{run.name}/{arm.arm.name}: {taken['warning']}")
        self.registry.write(name, {"arm": arm.arm.name, **taken})

    def _decide(self, run: PhaseRun) -> None:
        name = f"decision-{run.index}"
        taken = self.registry.read(name)
        if taken is None:
            bodies = [self._arm_body(a) for a in run.arms]
            taken = phase_decision(run, bodies, self.search.select, self.registry.last_value)
            self.registry.write(name, taken)
        run.decision = taken
        by_name = {a.arm.name: a.arm for a in run.arms}
        self._carried = [by_name[n] for n in taken["kept"] or [taken["winner"]]]
