"""`fabric plan`: what a job would do, before it does it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fabric.analysis.stats import minimal_detectable_difference
from fabric.data import data_key
from fabric.data.config import DataConfig
from fabric.job.content import naming_corpus
from fabric.job.document import JobError
from fabric.job.load import Job, load_job
from fabric.job.start import Start
from fabric.planning.cost import (
    disk_bytes,
    evaluation_flops,
    peak_memory_bytes,
    training_flops,
    training_tokens,
)
from fabric.planning.expand import Arm, arms_of_phase
from fabric.planning.machine import Concurrency, cpu_count
from fabric.planning.match import matched_configuration
from fabric.planning.parallel import Prediction
from fabric.planning.prediction import predictions
from fabric.planning.speed import flops_per_second
from fabric.planning.study import ArmRun, Machine, PhaseRun, Study, Trial
from fabric.planning.trial import TrialSpec
from fabric.store import FAILED, FINISHED, Store, Url
from fabric.sweeping import JobSource, cache_root, out_root, slots_for
from kernels.folders import default_cache_root
from models import n_params, state_bytes
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
    # new, finished (perhaps under other numerics, or to be measured), stopped, failed, interrupted, duplicate
    state: str
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
    """A phase that waits for the ones before it: how many arms it will have, and how many trials at most.

    What is adopted by then is usually one of its arms, trained already: arms that are the job's base are not counted
    as trials. `when` is the phase's condition; one that does not hold skips it.
    """

    phase: str
    n_arms: int
    n_trials: int
    when: dict[str, Any]


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
    starts: list[str]
    # precision and compile where the job says auto: what they became, and for which arms
    auto: dict[str, dict[str, list[str]]]
    slots: int
    threads: int
    limit: str
    flops: float
    speed: float
    speed_from: str
    eta_seconds: float
    disk_bytes: int
    detectable: float | None
    # several workers a trial, or scale `cluster`: what a model says of more workers; nothing of it is measured
    predictions: list[Prediction]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    job: JobSource,
    *,
    scale: str | None = None,
    overrides: Iterable[str] = (),
    out: str | Path | Url = "runs",
    strict_numerics: bool = False,
) -> Plan:
    """What `fabric.sweep` with the same arguments would do; trains nothing and writes no record.

    Raises JobError when the job is not valid (every arm of every phase is checked).
    """
    loaded = load_job(job, scale, overrides, cache_root(out))
    store = Store(out_root(loaded, out)).at_once()
    study = _dry_study(loaded, store, out, strict_numerics)
    later = _placeholders(study)
    slots, excess = _slots(study)
    speed, speed_from = flops_per_second(store, study.base, min(slots.threads, cpu_count()))
    flops, costly = _ahead(study, later, training_flops), _ahead(study, later, evaluation_flops)
    return Plan(
        job=loaded.name,
        scale=scale,
        study=study.id,
        trials=[row for phase in study.phases for row in _rows(study, phase)],
        later=later,
        arms=[_arm_cost(study, p, a) for p in study.phases for a in p.arms],
        warnings=[*_warnings(study), *excess],
        starts=_starts(study),
        auto=_decided(study),
        slots=slots.slots,
        threads=slots.threads,
        limit=slots.limit,
        flops=flops,
        speed=speed,
        speed_from=speed_from,
        eta_seconds=(flops + costly) / speed / max(1, slots.slots),
        disk_bytes=int(_all_trials(study, later, disk_bytes)),
        detectable=_detectable(study, store),
        predictions=predictions(study.base, loaded.config.resources, scale, slots.threads),
    )


def _dry_study(job: Job, store: Store, out: str | Path | Url, strict: bool) -> Study:
    """The planner of a job that writes nothing below `out`; the hash of a large corpus is remembered where caches are
    already, else in the user's own cache folder."""
    folder = cache_root(out)
    root = folder if folder.is_dir() else default_cache_root()
    absent: set[str] = set()

    @cache
    def key(config: DataConfig) -> str:
        if config.examples is not None or config.stream is not None or config.corpus.is_here(root):
            with naming_corpus(job):
                return data_key(config, root)
        absent.add(config.corpus.kind)
        return hashlib.sha256(config.model_dump_json().encode()).hexdigest()

    study = Study(
        job, store, key, Machine(job.threads, job.device, job.config.resources.ranks), dry=True, strict=strict
    )
    if not study.trials:
        raise JobError(
            [f"{job.name}: no phase's condition holds and none of its arms fits: nothing would be trained"]
        )
    if absent:
        study.warnings.append(
            "the text is not fetched yet: trial ids are not known, and every trial counts as new (the sweep fetches it)"
        )
    return study


def _slots(study: Study) -> tuple[Concurrency, list[str]]:
    """How many trials run at once here; none, with a warning, when not even one fits (another machine may do)."""
    try:
        return slots_for(study, None), []
    except ValueError as error:
        return Concurrency(0, study.job.threads, str(error)), [f"this machine cannot run it: {error}"]


def _rows(study: Study, phase: PhaseRun) -> list[PlannedRow]:
    rows, seen = [], set()
    for arm in phase.arms:
        chosen = arm.main is not None or len(study.points) == 1
        main = arm.main if arm.main is not None else study.preview(phase, arm)
        for trial in [*arm.tuning, *main]:
            known = chosen or trial.role == "tuning"
            elsewhere = (trial.phase, trial.arm) != (phase.name, arm.arm.name)
            state = "duplicate" if trial.id in seen or elsewhere else _state(study, trial) if known else "new"
            seen.add(trial.id)
            rows.append(
                PlannedRow(
                    phase.name,
                    arm.arm.name,
                    trial.role,
                    trial.point if known else "best rate",
                    trial.seed,
                    trial.id if known else "",
                    state,
                    training_tokens(trial.spec),
                )
            )
    return rows


def _state(study: Study, trial: Trial) -> str:
    """new, finished, stopped (by a rung), failed (it is tried again) or interrupted (it goes on)."""
    status = study.registry.record(trial).status()
    if status is None:
        return "new"
    if trial.end == "stopped":
        return "stopped"
    if trial in study.registry.unmeasured:
        return "finished, to be measured"
    if trial in study.registry.foreign:
        return "finished, other numerics"
    return status.state if status.state in (FINISHED, FAILED) else "interrupted"


def _placeholders(study: Study) -> list[Placeholder]:
    """Phases not opened yet: their own arms, times what the phase before carries on."""
    found, carried = [], study.phases[-1].keep if study.phases else 1
    opened = len(study.phases) + len(study.skipped)
    for index, phase in list(enumerate(study.search.phases))[opened:]:
        own = arms_of_phase(study.job, index, phase)
        n_new = sum(not _is_base(study, arm) for arm in own) * carried
        per_arm = len(study.search.seeds)
        if len(study.points) > 1:
            per_arm += len(study.points) * len(study.search.tuning_seeds)
        found.append(Placeholder(phase.name, len(own) * carried, n_new * per_arm, dict(phase.when)))
        carried = phase.keep
    return found


def _is_base(study: Study, arm: Arm) -> bool:
    """Whether an arm sets only what the job's base has anyway."""
    try:
        configured = study.job.configure(arm.overrides)
    except JobError:
        return False  # it fits what an earlier phase may adopt
    return matched_configuration(study.job, configured, study.base)[0] == study.base


Cost = Callable[[TrialSpec], float]


def _ahead(study: Study, later: list[Placeholder], cost: Cost) -> float:
    """A cost summed over what is still to be trained; phases that wait are counted at the mean of the trials known."""
    known = [t for t in study.trials.values() if t.state != "ended" and t not in study.registry.unmeasured]
    main = [t for p in study.phases for a in p.arms if not a.is_settled for t in study.preview(p, a)]
    ahead = {t.id: cost(t.spec) for t in [*known, *main]}
    return sum(ahead.values()) + _mean_cost(study, cost) * sum(p.n_trials for p in later)


def _all_trials(study: Study, later: list[Placeholder], cost: Cost) -> float:
    """A cost summed over every trial of the study, finished ones too."""
    ended = sum(cost(t.spec) for t in study.trials.values() if t.state == "ended")
    return ended + _ahead(study, later, cost)


def _mean_cost(study: Study, cost: Cost) -> float:
    return sum(cost(t.spec) for t in study.trials.values()) / len(study.trials)


def _arm_cost(study: Study, phase: PhaseRun, arm: ArmRun) -> ArmCost:
    configuration = arm.configuration
    model, seq_len = configuration.model, configuration.data.seq_len
    trial = (arm.tuning or arm.main or study.preview(phase, arm))[0]
    return ArmCost(
        phase.name,
        arm.arm.name,
        n_params(model),
        3 * configuration.train.objective.flops_per_token(model, seq_len, configuration.data.n_asked),
        state_bytes(model, seq_len, 2),
        peak_memory_bytes(trial.spec),
        arm.mismatch,
    )


def _warnings(study: Study) -> list[str]:
    found = list(study.notes)
    for phase in study.phases:
        for arm in phase.arms:
            for text in model_warnings(arm.configuration.model, arm.configuration.data.seq_len):
                found.append(f"{phase.name}/{arm.arm.name}: {text}")
    return found


def _starts(study: Study) -> list[str]:
    """Which weights arms start from, in sentences."""
    arms: dict[Start, list[str]] = {}
    for phase in study.phases:
        for arm in phase.arms:
            if arm.configuration.start is not None:
                arms.setdefault(arm.configuration.start, []).append(f"{phase.name}/{arm.arm.name}")
    return [
        f"{', '.join(names)}: from the weights of {start.source} ({start.key[:12]}), whatever the seed: seeds change "
        "the order of the data only"
        for start, names in arms.items()
    ]


def _decided(study: Study) -> dict[str, dict[str, list[str]]]:
    """For each field that is auto, its values as a job writes them, each with its arms."""
    found: dict[str, dict[str, list[str]]] = {}
    for phase in study.phases:
        for arm in phase.arms:
            for name in arm.configuration.auto:
                value = str(getattr(arm.configuration.train, name)).lower()
                found.setdefault(name, {}).setdefault(value, []).append(f"{phase.name}/{arm.arm.name}")
    return found


def _detectable(study: Study, store: Store) -> float | None:
    """The smallest difference this plan could detect, from the spread of finished runs of the same size."""
    from fabric.analysis.noise import seed_spread

    spread = seed_spread(store, study)
    n = len(study.search.seeds)
    if not spread or n < 2:  # seeds that end alike, to the last bit, say nothing about noise
        return None
    # Holm's first step: the level is shared by all comparisons of the phase.
    n_compared = max((len(p.arms) - 1 for p in study.phases), default=1)
    alpha = study.search.select.alpha / max(1, n_compared)
    return minimal_detectable_difference(spread * 2**0.5, n, alpha=alpha)
