"""A study: which trial comes next, when a trial stops, what a rate or a phase decides. No Ray, no torch loops.

The runner (Ray Tune's searcher and scheduler, or the inline loop) asks three things: `next_task`, `reported`,
`ended`. Every decision is a record in the store with its inputs, written once; a study built again from the same
job and store takes none anew and goes on where the last one was.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fabric.analysis.decide import ArmResult, decide
from fabric.analysis.rates import pick_rate
from fabric.evaluate.test import test_key
from fabric.job.load import Configuration, Job, Override
from fabric.planning.expand import Arm, arms_of_phase, arms_of_search, nuisance_points
from fabric.planning.match import MISMATCH_WARNED, matched
from fabric.planning.stopping.base import Verdict
from fabric.planning.trial import TrialSpec, canonical_json, described
from fabric.store import FAILED, FINISHED, Store
from models import flops_per_token, n_params, state_bytes
from models.parts import nearest

MOST_COMBINATIONS = 200  # of earlier phases' arms that a later phase is checked on
PATH_FREE = {"minimal_pairs": None}
Role = Literal["tuning", "main"]
Action = Literal["continue", "stop", "pause"]


@dataclass(frozen=True)
class Machine:
    """What the trials of this run are given; none of it is part of a trial's identity."""

    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass
class Trial:
    """A planned trial and where it stands in this run."""

    spec: TrialSpec
    id: str
    phase: str
    arm: str
    point: str
    role: Role
    seed: int
    rungs: tuple[int, ...] = ()  # in tokens
    group: str = ""
    unit: str = ""
    state: Literal["waiting", "running", "paused", "ended"] = "waiting"
    end: str | None = None  # finished, stopped, failed
    failures: int = 0
    rung_values: dict[int, float | None] = field(default_factory=dict)
    decisions: dict[int, dict[str, Any]] = field(default_factory=dict)  # by rung


@dataclass(frozen=True)
class Task:
    """What a worker is asked to do: train a trial, or read the test split with its last checkpoint."""

    kind: Literal["train", "test"]
    trial: Trial


@dataclass
class ArmRun:
    """An arm within a phase: its points (rates) to tune over, then its main trials."""

    arm: Arm
    index: int
    configuration: Configuration
    mismatch: float | None
    points: list[Arm]
    tuning: list[Trial] = field(default_factory=list)
    main: list[Trial] | None = None
    out: bool = False  # no rate trained to its end


@dataclass
class PhaseRun:
    """A phase being worked on."""

    index: int
    name: str
    arms: list[ArmRun]
    baseline: str
    keep: int
    decision: dict[str, Any] | None = None


class Study:
    """The planner of one job at one scale on one store.

    `data_key` gives the content key of a data configuration (see `fabric.data.data_key`). With `dry`, nothing is
    written: this is what `fabric plan` uses.
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
        self._check_every_phase()
        self.id = self._study_id()
        body = {"name": job.name, "scale": job.scale, "study": self.id, "created": time.time()}
        self._record("job", {**body, "job": job.document.data})
        self._tested: set[str] = set()
        self.untested: set[str] = set()  # trials whose test split could not be read
        self._open_next_phase()

    # -- identity and records ------------------------------------------------------------------------------

    def _study_id(self) -> str:
        """A hash of what is compared and how; not of names, resources or cadences."""
        probe = self._spec(self.base, seed=0)
        body = [
            probe.identity(),
            described(self.search),
            described(probe.evaluate.model_copy(update=PATH_FREE)),
        ]
        return hashlib.sha256(canonical_json(body).encode()).hexdigest()[:12]

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

    # -- phases ---------------------------------------------------------------------------------------------

    @property
    def phase_names(self) -> list[str]:
        return [p.name for p in self.search.phases] if self.search.mode == "phases" else ["main"]

    def _open_next_phase(self) -> None:
        """Open the next phase that is not decided yet; decided ones are passed through by their records."""
        while (index := len(self.phases) + len(self.skipped)) < len(self.phase_names):
            if self.search.mode == "phases":
                phase = self.search.phases[index]
                carried = [c for c in self._carried if self.applies(phase.when, c.overrides)]
                if not carried or carried[0] is not self._carried[0]:
                    self.skipped.append(phase.name)
                    continue
                own, keep = arms_of_phase(self.job, index, phase), phase.keep
            else:
                carried, own, keep = [Arm("")], arms_of_search(self.job), 1
            run = self._phase_run(index, carried, own, keep)
            self.phases.append(run)
            self._note_plan(run)
            self._settle(run)
            if run.decision is None:
                return

    def applies(self, when: Mapping[str, Any], overrides: Sequence[Override]) -> bool:
        """Whether a phase's condition holds for the base with these overrides on it."""
        if not when:
            return True
        configuration = self.job.configure(overrides)
        for path, wanted in when.items():
            value: Any = configuration
            for key in path.split("."):
                value = getattr(value, key, None)
            if value != wanted:
                return False
        return True

    def _check_every_phase(self) -> None:
        """Configure every arm of every phase on the base, so that a mistake in the last phase shows at once.

        A phase with a condition is checked where the base, or an arm of an earlier phase, meets it.
        """
        bases: list[tuple[Override, ...]] = [()]
        for index, phase in enumerate(self.search.phases):
            own = arms_of_phase(self.job, index, phase)
            usable = [b for b in bases if self.applies(phase.when, b)]
            for arm in own:
                for base in usable[:MOST_COMBINATIONS]:
                    self.job.configure(base + arm.overrides)
            bases += [b + arm.overrides for b in usable for arm in own][:MOST_COMBINATIONS]
        for point in self.points:
            self.job.configure(point.overrides)

    def preview(self, phase: PhaseRun, arm: ArmRun) -> list[Trial]:
        """What an arm's main trials would be with its first point (the rate is not chosen yet); none is kept."""
        if arm.out:
            return []
        trials = dict(self.trials)
        main = [self._trial(arm, phase.name, arm.points[0], "main", s) for s in self.search.seeds]
        self.trials = trials
        return main

    def _phase_run(self, index: int, carried: list[Arm], own: list[Arm], keep: int) -> PhaseRun:
        name = self.phase_names[index]
        crossed = [
            Arm(
                f"{base.name} + {arm.name}" if len(carried) > 1 and base.name else arm.name,
                base.overrides + arm.overrides,
            )
            for base in carried
            for arm in own
        ]
        arms = [self._arm_run(name, i, arm) for i, arm in enumerate(crossed)]
        return PhaseRun(index, name, arms, self._baseline(arms, carried[0]), keep)

    def _baseline(self, arms: list[ArmRun], carried: Arm) -> str:
        names = [a.arm.name for a in arms]
        wanted = self.search.baseline
        if wanted is not None and self.search.mode != "phases":
            if wanted not in names:
                from fabric.job.errors import explain

                close = nearest(wanted, names)
                hint = f"; did you mean {close!r}?" if close else ""
                message = f"{wanted!r} is no arm{hint} (allowed: {', '.join(names)})"
                raise explain(self.job.document, ("search", "baseline"), message)
            return wanted
        before = self._matched(self.job.configure(carried.overrides))[0]
        same = [a.arm.name for a in arms if a.configuration == before]
        return (same or names)[0]

    def _matched(self, configuration: Configuration) -> tuple[Configuration, float | None]:
        what = self.search.match
        if what == "none":
            return configuration, None
        model, mismatch = matched(configuration.model, self.base.model, what, configuration.data.seq_len)
        return Configuration(model, configuration.data, configuration.train, configuration.evaluate), mismatch

    def _arm_run(self, phase: str, index: int, arm: Arm) -> ArmRun:
        configuration, mismatch = self._matched(self.job.configure(arm.overrides))
        if mismatch is not None and abs(mismatch) > MISMATCH_WARNED:
            self.warnings.append(
                f"{phase}/{arm.name}: {self.search.match} differ by {mismatch:+.1%} from the base's after matching"
            )
        run = ArmRun(arm, index, configuration, mismatch, self.points)
        if len(self.points) > 1:
            seeds = self.search.tuning_seeds
            run.tuning = [self._trial(run, phase, p, "tuning", s) for p in self.points for s in seeds]
        return run

    def _trial(self, run: ArmRun, phase: str, point: Arm, role: Role, seed: int) -> Trial:
        configuration = self._matched(self.job.configure(run.arm.overrides + point.overrides))[0]
        spec = self._spec(configuration, seed)
        judged = role == "tuning" or self.search.compete == "arms"
        trial = Trial(spec, spec.id, phase, run.arm.name, point.name, role, seed)
        if judged:
            trial.rungs = self._rungs(spec)
            trial.group = f"{phase}/{run.arm.name}" if role == "tuning" else phase
            trial.unit = point.name if role == "tuning" else run.arm.name
        # The same configuration and seed under another name is the same trial: it is trained once.
        known = self.trials.setdefault(trial.id, trial)
        if known is trial:
            self._look_up(trial)
        return known

    def _rungs(self, spec: TrialSpec) -> tuple[int, ...]:
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
        if trial.rungs:
            self._values_from(trial, record.metrics())
        if status.state == FINISHED:
            trial.state, trial.end = "ended", FINISHED
        elif any(d["stop"] for d in trial.decisions.values()):
            trial.state, trial.end = "ended", "stopped"
        elif any(rung not in trial.decisions for rung in trial.rung_values):
            trial.state = "paused"  # the driver was gone before it decided: `_settle` does

    def _values_from(self, trial: Trial, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row.get("tokens") in trial.rungs and "val_loss" in row:
                trial.rung_values[row["tokens"]] = row["val_loss"]

    def _note_plan(self, run: PhaseRun) -> None:
        body = {
            "phase": run.name,
            "index": run.index,
            "baseline": run.baseline,
            "arms": [self._arm_body(a) for a in run.arms],
        }
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
            for arm in run.arms:
                for trial in [*arm.tuning, *(arm.main or [])]:
                    if trial.state == "waiting":
                        trial.state = "running"
                        return Task("train", trial)
            return "wait"
        return self._next_test()

    def finished(self) -> bool:
        """Whether nothing is left to do (asked before Ray is started, so that a re-run is quick)."""
        if self.phases and self.phases[-1].decision is None:
            return False
        return all(self._is_tested(t) for t in self.main_trials())

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
        return "wait" if any(t.state == "running" for t in self.trials.values()) else "done"

    def main_trials(self) -> list[Trial]:
        """The trials that results are made of, each once."""
        found = {t.id: t for p in self.phases for a in p.arms for t in a.main or []}
        return list(found.values())

    def reported(self, trial_id: str, row: Mapping[str, Any]) -> Action:
        """What a trial does after reporting a row: go on, stop for good, or leave its place until its rung decides."""
        trial = self.trials[trial_id]
        rung = row.get("tokens")
        if rung not in trial.rungs:
            return "continue"
        trial.rung_values[rung] = row.get("val_loss")
        self._judge(trial, rung)
        decision = trial.decisions.get(rung)
        action: Action = "pause" if not decision else ("stop" if decision["stop"] else "continue")
        if action == "pause":
            trial.state = "paused"
        elif action == "stop":
            trial.state, trial.end = "ended", "stopped"
        return action

    def ended(self, trial_id: str, error: str | None = None, out_of_memory: bool = False) -> None:
        """A worker let go of a trial: because it finished, was told to, or failed with `error`."""
        trial = self.trials[trial_id]
        status = self.store.trial(trial_id).status()
        if status is not None and status.state == FINISHED:
            trial.state, trial.end = "ended", FINISHED
            if trial.rungs:
                self._values_from(trial, self.store.trial(trial_id).metrics())
        elif trial.state == "running":
            trial.failures += 1
            if out_of_memory:
                self._halve_micro_batch(trial)
            retry = trial.failures <= self.job.config.resources.max_retries
            trial.state, trial.end = ("waiting", None) if retry else ("ended", FAILED)
            self._note_failure(trial, error)
            if not retry:
                self.warnings.append(f"{trial.phase}/{trial.arm} seed {trial.seed} failed: {error}")
        if trial.group:
            for rung in trial.rungs:
                self._judge(trial, rung)
        if trial.state == "paused":
            self._unpause(trial)

    def _note_failure(self, trial: Trial, error: str | None) -> None:
        """Record why an attempt failed: a killed worker's last word is that it runs."""
        if not self.dry:
            record = self.store.trial(trial.id)
            attempt = max(record.attempt_numbers(), default=0)
            body = {"failed_attempt": attempt, "error": error or "no message", "study": self.id}
            record.write_decision(f"{self.id}-failure-{attempt}", body)

    def tested(self, trial_id: str, error: str | None = None) -> None:
        """A worker let go of a test task; one that failed is given out again as often as a trial is."""
        trial = self.trials[trial_id]
        if error is None:
            return
        trial.failures += 1
        if trial.failures <= self.job.config.resources.max_retries:
            self._tested.discard(trial_id)
        else:
            self.untested.add(trial_id)
            self.warnings.append(f"{trial.phase}/{trial.arm} seed {trial.seed}: test split not read: {error}")

    def _halve_micro_batch(self, trial: Trial) -> None:
        now = self.micro_batch_size(trial) or trial.spec.train.micro_batch_size or trial.spec.train.batch_size
        smaller = next((m for m in range(now // 2, 0, -1) if trial.spec.train.batch_size % m == 0), 1)
        name = f"{self.id}-memory-{trial.failures}"
        if not self.dry:
            body = {"micro_batch_size": smaller, "because": "the worker ran out of memory"}
            self.store.trial(trial.id).write_decision(name, body)

    def micro_batch_size(self, trial: Trial) -> int | None:
        """The micro-batch decided after running out of memory, or None."""
        record = self.store.trial(trial.id)
        for n in range(self.job.config.resources.max_retries + 1, 0, -1):
            if decision := record.decision(f"{self.id}-memory-{n}"):
                return int(decision["micro_batch_size"])
        return None

    # -- rungs --------------------------------------------------------------------------------------------------

    def _judge(self, trial: Trial, rung: int) -> None:
        """Decide a rung for every unit whose values are complete (in the sync form: when all units' are)."""
        group = [t for t in self.trials.values() if t.group == trial.group and rung in t.rungs]
        alive = [t for t in group if not self._left_before(t, rung)]
        units: dict[str, list[Trial]] = {}
        for member in alive:
            units.setdefault(member.unit, []).append(member)
        complete = {u: ms for u, ms in units.items() if all(self._has_value(m, rung) for m in ms)}
        if self.search.scheduler.sync and (len(complete) < len(units) or not self._group_is_whole(trial)):
            return
        values = {u: self._unit_value(ms, rung) for u, ms in complete.items()}
        for unit, members in complete.items():
            if rung in members[0].decisions:
                continue
            arrived = self.search.scheduler.sync or unit == trial.unit
            if arrived:
                verdict = self.search.scheduler.judge(unit, rung, values)
                for member in members:
                    self._apply(member, rung, verdict)

    def _left_before(self, trial: Trial, rung: int) -> bool:
        """Whether a trial was stopped at an earlier rung, or failed: it is no member of this one."""
        if trial.end == FAILED:
            return True
        return any(r < rung and d["stop"] for r, d in trial.decisions.items())

    def _group_is_whole(self, trial: Trial) -> bool:
        """Whether every arm that will be judged with this trial has its trials by now (rates come one by one)."""
        phase = next(p for p in self.phases if p.name == trial.phase)
        return trial.role == "tuning" or all(a.main is not None or a.out for a in phase.arms)

    def _has_value(self, trial: Trial, rung: int) -> bool:
        return rung in trial.rung_values or trial.end == FINISHED

    def _unit_value(self, members: list[Trial], rung: int) -> float | None:
        return _mean([m.rung_values[rung] if rung in m.rung_values else self._last_value(m) for m in members])

    def _last_value(self, trial: Trial) -> float | None:
        """A trial that ended before the rung stands there with its end: its last loss, or None if it diverged."""
        status = self.store.trial(trial.id).status()
        return (status.final or {}).get("val_loss") if status else None

    def _apply(self, trial: Trial, rung: int, verdict: Verdict) -> None:
        body = {**verdict.as_reason(), "stop": verdict.stop, "unit": trial.unit, "study": self.id}
        trial.decisions[rung] = body
        if not self.dry:
            self.store.trial(trial.id).write_decision(f"{self.id}-{rung}", body)
        if trial.end == FINISHED:
            return
        if verdict.stop and trial.state in ("paused", "waiting"):
            trial.state, trial.end = "ended", "stopped"

    def _unpause(self, trial: Trial) -> None:
        """A paused trial whose rung has been decided meanwhile goes back in line."""
        rung = max((r for r in trial.rung_values), default=None)
        if rung is not None and rung in trial.decisions:
            trial.state = "waiting"

    # -- rates and phases -------------------------------------------------------------------------------------

    def _settle(self, run: PhaseRun) -> None:
        """Take every decision that is due: rates of arms whose tuning has ended, then the phase's."""
        for trial in [t for t in self.trials.values() if t.state == "paused"]:
            for rung in trial.rung_values:
                if rung not in trial.decisions:
                    self._judge(trial, rung)
            if trial.state == "paused":
                self._unpause(trial)
        for arm in run.arms:
            if arm.main is None and not arm.out and all(t.state == "ended" for t in arm.tuning):
                self._choose_rate(run, arm)
        main = [t for a in run.arms for t in a.main or []]
        settled = all(a.main is not None or a.out for a in run.arms)
        if settled and all(t.state == "ended" for t in main):
            self._decide(run)

    def _choose_rate(self, run: PhaseRun, arm: ArmRun) -> None:
        name = f"rate-{run.index}-{arm.index}"
        taken = self.store.study(self.id, name)
        if taken is None:
            taken = self._rate_decision(arm)
        point = next((p for p in arm.points if p.name == taken["point"]), None)
        if point is None:
            arm.out = True
            self.warnings.append(f"{run.name}/{arm.arm.name}: no rate trained to its end; the arm is out")
        else:
            arm.main = [self._trial(arm, run.name, point, "main", s) for s in self.search.seeds]
            taken = {**taken, "trials": [{"id": t.id, "seed": t.seed} for t in arm.main]}
        if taken.get("warning"):
            self.warnings.append(f"{run.name}/{arm.arm.name}: {taken['warning']}")
        self._record(name, {"arm": arm.arm.name, **taken})

    def _rate_decision(self, arm: ArmRun) -> dict[str, Any]:
        """The point the arm's main trials take; one that ASHA stopped is no candidate."""
        if len(arm.points) == 1:
            return {"point": arm.points[0].name, "why": "nothing to choose"}
        seen: dict[str, list[float | None]] = {p.name: [] for p in arm.points}
        for trial in arm.tuning:
            if trial.end == FINISHED:
                seen[trial.point].append(self._last_value(trial))
        n_seeds = len(self.search.tuning_seeds)
        means = {n: _mean(v) for n, v in seen.items() if len(v) == n_seeds}
        finite = {n: m for n, m in means.items() if m is not None}
        why = "lowest mean validation loss over the tuning seeds"
        if not finite:
            return {"point": None, "why": "every rate diverged, failed or was stopped", "seen": seen}
        rates = {p.name: _rate_of(p) for p in arm.points}
        if None not in rates.values():
            choice = pick_rate([(float(rate or 0), seen[name]) for name, rate in rates.items()])
            point = next(name for name, rate in rates.items() if rate == choice.lr)
            return {"point": point, "why": why, "warning": choice.warning, "seen": seen}
        return {"point": min(finite, key=lambda n: finite[n]), "why": why, "seen": seen}

    def _decide(self, run: PhaseRun) -> None:
        name = f"decision-{run.index}"
        taken = self.store.study(self.id, name)
        if taken is None:
            taken = self._phase_decision(run)
            self._record(name, taken)
        run.decision = taken
        by_name = {a.arm.name: a.arm for a in run.arms}
        self._carried = [by_name[n] for n in taken["kept"] or [taken["winner"]]]

    def _phase_decision(self, run: PhaseRun) -> dict[str, Any]:
        results = []
        for arm in run.arms:
            finished = [t for t in arm.main or [] if t.end == FINISHED]
            losses = {t.seed: self._last_value(t) for t in finished}
            body = self._arm_body(arm)
            results.append(
                ArmResult(
                    arm.arm.name,
                    {s: v for s, v in losses.items() if v is not None},
                    body["state_bytes"],
                    body["flops_per_token"],
                    # An arm without a single finished trial stands with the diverged ones.
                    diverged=sum(v is None for v in losses.values()) or int(not finished),
                )
            )
        select = self.search.select
        decision = decide(results, run.baseline, margin=select.margin, alpha=select.alpha, keep=run.keep)
        return {"phase": run.name, "index": run.index, **decision.to_json()}


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None when any value is missing or not finite (a run diverged)."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return sum(finite) / len(finite) if finite and len(finite) == len(values) else None


def _rate_of(point: Arm) -> float | None:
    """The value of a point that sets one number; None for others."""
    values = [o.value for o in point.overrides]
    try:
        return float(values[0]) if len(values) == 1 else None
    except (TypeError, ValueError):
        return None
