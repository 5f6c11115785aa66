"""`fabric.sweep`: from a job file to a finished table. Runs the planner's tasks by Ray Tune, or inline without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from fabric.data import TokenCache, data_key, prepare
from fabric.data.config import DataConfig
from fabric.data.corpus import CorpusError
from fabric.job.content import naming_corpus
from fabric.job.load import Job, load_job
from fabric.planning.machine import Concurrency, concurrency, cpu_count, gpu_count
from fabric.planning.study import Action, Study, Task
from fabric.planning.study import Machine as StudyMachine
from fabric.planning.trial import RanksConfig, TrialSpec
from fabric.runtime.signals import interruptible
from fabric.store import (
    Place,
    Store,
    StoreUnavailableError,
    Url,
    cache_of,
    driver_lock,
    located,
    share,
    told_when_full,
)
from fabric.store.objects import Objects

JobSource = str | Path | Mapping[str, Any]


class Progress(Protocol):
    """Who watches a sweep: the live screen, plain lines, or nobody."""

    def attach(self, study: Study, slots: int) -> None: ...
    def preparing(self, stage: str, fraction: float) -> None: ...
    def started(self, task: Task) -> None: ...
    def reported(self, task: Task, row: Mapping[str, Any], action: Action) -> None: ...
    def ended(self, task: Task, error: str | None) -> None: ...
    def interrupted(self) -> None: ...
    def tick(self) -> None: ...


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended: its folder, study, and whether it was interrupted or trials failed."""

    root: Place
    study: str
    interrupted: bool
    failed: tuple[str, ...]
    warnings: tuple[str, ...]


def out_root(job: Job, out: str | Path | Url) -> Place:
    """Where a job's records live: `<out>/<job name>`."""
    return located(out) / job.name


def cache_root(out: str | Path | Url) -> Path:
    """Where token caches live: beside the jobs, shared by them; the user's own cache folder where `out` is a URL."""
    return cache_of(located(out))


def tune_folder(root: Place) -> Path:
    """Where Tune keeps its own records of a job: beside ours, or on the driver's machine where ours are at a URL."""
    if isinstance(root, Path):
        return root / "tune"
    return cache_of(root) / "tune" / str(root).replace("://", "/", 1)


def sweep(
    job: JobSource,
    *,
    scale: str | None = None,
    overrides: Iterable[str] = (),
    out: str | Path | Url = "runs",
    address: str | None = None,
    runner: Literal["tune", "inline"] = "tune",
    strict_numerics: bool = False,
    progress: Progress | None = None,
) -> SweepResult:
    """Train everything a job compares; the same call goes on where the last one stopped.

    `out` is a folder, or a URL of an object store (`s3://bucket/prefix`). `address` joins a running Ray cluster (`out`
    must then be a URL, or a folder that all nodes share). `runner="inline"` trains one trial
    after the other in this process, without Ray. `strict_numerics` trains again what was trained under other library
    versions, instructions or threads: bit-equality is promised only within one such fingerprint.

    Raises JobError for a bad job, LockedError when another sweep holds the folder, StoreUnavailableError when nothing
    more can be recorded; ClusterLostError when Ray dies. Interrupted by Ctrl-C or SIGTERM it returns, or raises
    KeyboardInterrupt where nothing is trained yet.
    """
    loaded = load_job(job, scale, overrides, cache_root(out))
    watcher = progress or Silent()
    root = out_root(loaded, out)
    written = root if isinstance(root, Path) else cache_root(out)
    with interruptible(), driver_lock(root) as objects, told_when_full(written):
        study = new_study(loaded, root, out, objects, strict=strict_numerics, alone=runner == "inline")
        if runner == "inline":
            return _inline(study, root, out, watcher)
        return _with_tune(study, root, out, address, watcher)


def new_study(
    job: Job,
    root: Place,
    out: str | Path | Url,
    objects: Objects | None = None,
    *,
    strict: bool = False,
    dry: bool = False,
    alone: bool = False,
) -> Study:
    """The planner of a job on its store, which writes through the `objects` that a driver's lock gave it.

    `alone`: its trials are one process each, whatever `resources` says.
    """
    keys: dict[DataConfig, str] = {}

    def key(config: DataConfig) -> str:
        if config not in keys:
            with naming_corpus(job):
                keys[config] = data_key(config, cache_root(out))
        return keys[config]

    ranks = RanksConfig() if alone else job.config.resources.ranks
    machine = StudyMachine(job.threads, job.device, ranks)
    return Study(job, Store(root, objects), key, machine, dry=dry, strict=strict)


class Caches:
    """The token caches of a run: each is built (or found) before the first trial that needs it, and shared with the
    other machines where they share no folder."""

    def __init__(self, job: Job, out: str | Path | Url, progress: Progress) -> None:
        self.job, self.root, self.progress = job, cache_root(out), progress
        self.out = located(out)
        self._ready: dict[str, TokenCache] = {}
        self._shared: set[str] = set()

    def ensure(self, task: Task) -> None:
        """Raises JobError where the text cannot be read, is too little for a batch, or a split for one window."""
        spec = task.trial.spec
        with naming_corpus(self.job):
            self._ensure(spec)
        for name in set(spec.cached) - self._shared:
            share(self.out, self.root, name)
            self._shared.add(name)

    def _ensure(self, spec: TrialSpec) -> None:
        if spec.data_key not in self._ready:
            self._ready[spec.data_key] = prepare(spec.data, self.root, progress=self._prepared)
        cache, seq_len = self._ready[spec.data_key], spec.data.seq_len
        needed = {"train": spec.train.batch_size, "validation": 1, "test": 1}
        if spec.data.stream is not None:
            del needed["train"]  # read while it trains
        for split, n in needed.items():
            if (found := cache.n_rows(split, seq_len)) < n:
                raise CorpusError(
                    f"the {split} split holds {found} windows of {seq_len} tokens, and {n} are needed: use more "
                    "text, a shorter seq_len, a smaller batch_size, or a larger fraction for the split"
                )

    def _prepared(self, stage: str, fraction: float) -> None:
        self.progress.preparing(f"data: {stage}", fraction)


def task_body(study: Study, task: Task, **settings: Any) -> dict[str, Any]:
    """What a worker is told: plain data. The specification is text: one column in Tune's own tables."""
    trial = task.trial
    study.registry.record(trial).write_spec(trial.spec.model_dump(mode="json"))
    return {
        "kind": task.kind,
        "trial": trial.id,
        "spec": trial.spec.model_dump_json(),
        "store": str(study.store.root),
        "rungs": list(trial.rungs),
        "threads": trial.spec.threads,
        "micro_batch_size": study.registry.micro_batch_size(trial),
        "numerics": trial.numerics,
        "in_group": not trial.spec.ranks.is_alone,
        "gpus": study.job.config.resources.gpus_per_worker,
        **settings,
    }


def _inline(study: Study, root: Place, out: str | Path | Url, progress: Progress) -> SweepResult:
    from fabric.runtime.worker import perform
    from fabric.train.directive import CheckpointAndExit, Continue, Directive, Stop

    caches = Caches(study.job, out, progress)
    progress.attach(study, 1)
    while not isinstance(task := study.next_task(), str):
        caches.ensure(task)
        progress.started(task)
        body = task_body(study, task, cache=str(caches.root), invocation=0, source_hash="")
        current = task

        def report(row: Mapping[str, Any], task: Task = current) -> Directive:
            if task.kind == "test":
                return Continue()
            action = study.reported(task.trial.id, row)
            progress.reported(task, row, action)
            if action == "continue":
                return Continue()
            return Stop({"kind": "stopped"}) if action == "stop" else CheckpointAndExit()

        error = None
        try:
            perform(body, report)
        except StoreUnavailableError:
            raise
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        if task.kind == "train":
            study.ended(task.trial.id, error)  # the loop has halved the micro-batch as far as it goes
        else:
            study.tested(task.trial.id, error)
        progress.ended(task, error)
    return _result(study, root, interrupted=False)


def _with_tune(
    study: Study, root: Place, out: str | Path | Url, address: str | None, progress: Progress
) -> SweepResult:
    if study.finished():
        return _result(study, root, interrupted=False)
    gpus = study.job.config.resources.gpus_per_worker

    from fabric.runtime.connect import cluster
    from fabric.runtime.tune import run_study

    here = cpu_count()
    progress.preparing(f"joining {address}" if address else "starting Ray", 0.0)
    with cluster(address, here, gpu_count() if gpus else 0) as nodes:
        slots = slots_for(study, nodes if address else None)
        progress.attach(study, slots.slots)

        def recount(nodes: Sequence[Mapping[str, float]]) -> int:
            return slots_for(study, nodes).slots

        finished = run_study(
            study,
            slots=slots.slots,
            recount=recount if address else None,
            cpus=slots.threads,
            gpus=gpus,
            root=root,
            progress=progress,
            caches=Caches(study.job, out, progress),
        )
    return _result(study, root, interrupted=not finished)


def slots_for(study: Study, nodes: Sequence[Mapping[str, float]] | None) -> Concurrency:
    """How many trials run at once, on this machine or on a cluster's nodes."""
    from fabric.planning.cost import peak_memory_bytes

    peak = max(peak_memory_bytes(t.spec) for t in study.trials.values())
    # Later phases and main trials are not planned yet: then the number of trials limits nothing.
    n_trials = len(study.trials) if study.is_fully_planned else None
    given = study.job.config.resources
    data_cpus = given.cpus_for_data(any(t.spec.data.stream is not None for t in study.trials.values()))
    return concurrency(given, peak, n_trials, nodes, data_cpus)


def _result(study: Study, root: Place, interrupted: bool) -> SweepResult:
    failed = tuple(t.id for t in study.trials.values() if t.end == "failed" or t.id in study.untested)
    return SweepResult(root, study.id, interrupted, failed, tuple(study.notes))


class Silent:
    """Watches nothing."""

    def attach(self, study: Study, slots: int) -> None:
        """Ignored."""

    def preparing(self, stage: str, fraction: float) -> None:
        """Ignored."""

    def started(self, task: Task) -> None:
        """Ignored."""

    def reported(self, task: Task, row: Mapping[str, Any], action: Action) -> None:
        """Ignored."""

    def ended(self, task: Task, error: str | None) -> None:
        """Ignored."""

    def interrupted(self) -> None:
        """Ignored."""

    def tick(self) -> None:
        """Ignored."""


__all__ = ["JobSource", "Progress", "SweepResult", "cache_root", "out_root", "sweep"]
