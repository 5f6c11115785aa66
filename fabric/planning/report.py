"""`fabric plan`: what a job would do, before it does it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fabric.analysis.stats import minimal_detectable_difference
from fabric.job.load import load_job
from fabric.planning.cost import checkpoint_bytes, peak_memory_bytes, training_flops, training_tokens
from fabric.planning.expand import arms_of_phase
from fabric.planning.speed import flops_per_second
from fabric.planning.study import PhaseRun, Study, Trial
from fabric.store import FINISHED, Store
from fabric.sweeping import JobSource, new_study, out_root, slots_for
from models import flops_per_token, n_params, state_bytes
from models.config import warnings as model_warnings


@dataclass(frozen=True)
class PlannedRow:
    """One trial of the plan: what it is and whether there is anything left to do."""

    phase: str
    arm: str
    role: str
    point: str
    seed: int
    id: str
    state: str  # new, finished, interrupted, duplicate
    tokens: int


@dataclass(frozen=True)
class ArmCost:
    """What an arm costs: parameters, forward and backward FLOPs a token, state, predicted peak memory."""

    phase: str
    arm: str
    n_params: int
    flops_per_token: float
    state_bytes: int
    peak_memory_bytes: int
    mismatch: float | None


@dataclass(frozen=True)
class Placeholder:
    """A phase that waits for the ones before it: how many trials it will have, at most and without tuning."""

    phase: str
    n_arms: int
    n_trials: int


@dataclass(frozen=True)
class Plan:
    """Everything `fabric plan` prints; `as_dict` is its JSON."""

    job: str
    scale: str | None
    study: str
    trials: list[PlannedRow]
    later: list[Placeholder]
    arms: list[ArmCost]
    warnings: list[str]
    slots: int
    threads: int
    limit: str
    flops: float
    speed: float
    speed_from: str
    eta_seconds: float
    disk_bytes: int
    detectable: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    job: JobSource, *, scale: str | None = None, overrides: Iterable[str] = (), out: str | Path = "runs"
) -> Plan:
    """What `fabric.sweep` with the same arguments would do; trains nothing and writes no record.

    Raises JobError when the job is not valid (every arm of every phase is checked).
    """
    loaded = load_job(job, scale, overrides)
    root = out_root(loaded, out)
    study = new_study(loaded, root, dry=True, out=out)
    slots = slots_for(study, None)
    store = Store(root)
    rows = [row for phase in study.phases for row in _rows(study, phase)]
    later = _placeholders(study)
    speed, speed_from = flops_per_second(store, study.base, slots.threads)
    flops = _flops_ahead(study, later)
    return Plan(
        job=loaded.name,
        scale=scale,
        study=study.id,
        trials=rows,
        later=later,
        arms=[_arm_cost(p, a) for p in study.phases for a in p.arms],
        warnings=_warnings(study),
        slots=slots.slots,
        threads=slots.threads,
        limit=slots.limit,
        flops=flops,
        speed=speed,
        speed_from=speed_from,
        eta_seconds=flops / speed / slots.slots,
        disk_bytes=sum(checkpoint_bytes(t.spec) for t in study.trials.values()),
        detectable=_detectable(study, store),
    )


def _rows(study: Study, phase: PhaseRun) -> list[PlannedRow]:
    rows, seen = [], set()
    for arm in phase.arms:
        main = arm.main if arm.main is not None else study.preview(phase, arm)
        for trial in [*arm.tuning, *main]:
            state = (
                "duplicate"
                if trial.id in seen or (trial.phase, trial.arm) != (phase.name, arm.arm.name)
                else ""
            )
            seen.add(trial.id)
            tokens = training_tokens(trial.spec)
            state = state or _state(study, trial)
            point = trial.point if arm.main is not None or trial.role == "tuning" else "best rate"
            identity = trial.id if point != "best rate" or len(study.points) == 1 else ""
            rows.append(
                PlannedRow(phase.name, arm.arm.name, trial.role, point, trial.seed, identity, state, tokens)
            )
    return rows


def _state(study: Study, trial: Trial) -> str:
    status = study.store.trial(trial.id).status()
    if status is None:
        return "new"
    if trial.end == "stopped":
        return "stopped"
    return FINISHED if status.state == FINISHED else "interrupted"


def _placeholders(study: Study) -> list[Placeholder]:
    """Phases not opened yet: their own arms, times what the phase before carries on."""
    found, carried = [], study.phases[-1].keep if study.phases else 1
    opened = len(study.phases) + len(study.skipped)
    for index, phase in list(enumerate(study.search.phases))[opened:]:
        n_arms = len(arms_of_phase(study.job, index, phase)) * carried
        per_arm = len(study.search.seeds)
        if len(study.points) > 1:
            per_arm += len(study.points) * len(study.search.tuning_seeds)
        found.append(Placeholder(phase.name, n_arms, n_arms * per_arm))
        carried = phase.keep
    return found


def _flops_ahead(study: Study, later: list[Placeholder]) -> float:
    ahead = [t for t in study.trials.values() if t.state != "ended"]
    known = sum(training_flops(t.spec) for t in ahead)
    waiting = [a for p in study.phases for a in p.arms if a.main is None and not a.out]
    per_trial = sum(training_flops(t.spec) for t in study.trials.values()) / max(1, len(study.trials))
    known += per_trial * len(waiting) * len(study.search.seeds)
    return known + per_trial * sum(p.n_trials for p in later)


def _arm_cost(phase: PhaseRun, arm: Any) -> ArmCost:
    configuration = arm.configuration
    model, seq_len = configuration.model, configuration.data.seq_len
    trial = (arm.tuning or arm.main)[0]
    return ArmCost(
        phase.name,
        arm.arm.name,
        n_params(model),
        3 * flops_per_token(model, seq_len),
        state_bytes(model, seq_len, 2),
        peak_memory_bytes(trial.spec),
        arm.mismatch,
    )


def _warnings(study: Study) -> list[str]:
    found = list(study.warnings)
    for phase in study.phases:
        for arm in phase.arms:
            for text in model_warnings(arm.configuration.model, arm.configuration.data.seq_len):
                found.append(f"{phase.name}/{arm.arm.name}: {text}")
    return found


def _detectable(study: Study, store: Store) -> float | None:
    """The smallest difference this plan could detect, from the spread of finished runs of the same size."""
    from fabric.analysis.noise import seed_spread

    spread = seed_spread(store, study)
    n = len(study.search.seeds)
    if spread is None or n < 2:
        return None
    # Holm's first step: the level is shared by all comparisons of the phase.
    n_compared = max((len(p.arms) - 1 for p in study.phases), default=1)
    alpha = study.search.select.alpha / max(1, n_compared)
    return minimal_detectable_difference(spread * 2**0.5, n, alpha=alpha)
