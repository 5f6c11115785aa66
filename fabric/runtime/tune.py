"""A study run by Ray Tune: one Tuner for all phases, a searcher that asks the planner, a scheduler that applies its
decisions. Tune's own records are written for its tools to read (`tune/<n>`); we never read them."""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, Stopper
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from fabric.planning.study import Action, Study, Task
from fabric.planning.tasks import Cause
from fabric.runtime.connect import (
    ClusterLostError,
    SourcesDifferError,
    lost_message,
    lost_processes,
    node_resources,
)
from fabric.runtime.held import GroupsHold
from fabric.runtime.signals import clean_stop
from fabric.runtime.waiting import FirstWait
from fabric.runtime.worker import fabric_trial
from fabric.sources import source_hash
from fabric.store import Place, StoreUnavailableError, told_when_full
from fabric.sweeping import Caches, Progress, task_body, tune_folder

SECONDS_TO_STOP = (
    2  # before Tune kills an actor that still trains when the sweep is interrupted (its default: 10)
)
RECOUNT_EVERY = 10.0  # seconds between looks at how much room a joined cluster has
# Trials at once on a cluster's nodes; ValueError for none.
Recount = Callable[[Sequence[Mapping[str, float]]], int]
NODE_LOST = re.compile(r"node has died|node was terminated|node .*preempted", re.IGNORECASE)


class Bridge:
    """Between Tune's trial ids and the study's tasks; every Tune callback ends here, each ending once."""

    def __init__(
        self,
        study: Study,
        slots: int,
        progress: Progress,
        caches: Caches,
        settings: dict[str, Any],
        recount: Recount | None = None,
    ) -> None:
        self.study, self.slots, self.progress = study, slots, progress
        self._recount, self._counted = recount, time.monotonic()
        self.caches, self.settings = caches, {**settings, "cache": str(caches.root)}
        self.tasks: dict[str, Task] = {}
        self.held = None if study.job.config.resources.ranks.is_alone else GroupsHold()
        self._first = FirstWait(study.job.config.resources, progress.preparing)
        self.interrupted = False
        self.preparing = False
        self.problem: OSError | ValueError | None = None  # why no trial can go on

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it is given into its records, and none of this belongs there."""
        return {}

    def interrupt(self) -> None:
        """Start no further trial. Raises KeyboardInterrupt where data is being prepared, which may take hours."""
        self.interrupted = True
        self.progress.interrupted()
        if self.preparing:
            raise KeyboardInterrupt

    @property
    def over(self) -> bool:
        """Whether the run ends here, with trials left: nothing that is heard of them now counts."""
        return self.interrupted or self.problem is not None

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """What the block writes may find the disk full, or the store out of reach.

        Then the run ends, and no trial is to blame.
        """
        try:
            yield
        except StoreUnavailableError as error:
            self.problem = self.problem or error

    def next_config(self, tune_id: str) -> dict[str, Any] | str | None:
        config: dict[str, Any] | str | None = Searcher.FINISHED
        if not self.over:
            with self.recording():
                config = self._next_config(tune_id)
        return Searcher.FINISHED if self.over else config

    def _next_config(self, tune_id: str) -> dict[str, Any] | str | None:
        if len(self.tasks) >= self.slots:
            self._look_for_room()
            return None
        task = self.study.next_task()
        if isinstance(task, str):
            return Searcher.FINISHED if task == "done" and not self.tasks else None
        self.preparing = True
        try:
            self.caches.ensure(task)
        except KeyboardInterrupt:
            self.interrupted = True
            return None
        except ValueError as error:  # the text cannot be used: no trial of this data can run
            self.problem = error
            return None
        finally:
            self.preparing = False
        config = self._config(task)
        self.tasks[tune_id] = task
        self.progress.started(task)
        return config

    def _look_for_room(self) -> None:
        """More trials at once where nodes have joined; fewer need no word, they wait."""
        now = time.monotonic()
        if self._recount is not None and now - self._counted > RECOUNT_EVERY:
            self._counted = now
            with contextlib.suppress(ValueError):  # nodes are away
                self.slots = max(self.slots, self._recount(node_resources()))

    def _config(self, task: Task) -> dict[str, Any]:
        """Axes as plain columns for Tune's own tools, our task under one key."""
        trial = task.trial
        columns = {"phase": trial.phase, "arm": trial.arm, "point": trial.point, "seed": trial.seed}
        columns |= {
            "lr": trial.spec.train.optimizer.lr,
            "role": trial.role,
            "trial": trial.id,
            "kind": task.kind,
        }
        return {**columns, "task": task_body(self.study, task, **self.settings)}

    def reported(self, tune_id: str, row: dict[str, Any]) -> bool:
        """Whether the trial goes on."""
        task = self.tasks.get(tune_id)
        if task is None or task.kind != "train" or self.over:
            return True
        action: Action = "continue"
        with self.recording():
            action = self.study.reported(task.trial.id, row)
        self.progress.reported(task, row, action)
        return action == "continue"

    def ended(self, tune_id: str, error: str | None = None) -> None:
        task = self.tasks.pop(tune_id, None)
        if task is None or self.over:
            return
        if error is not None and (problem := _not_the_trial(error)):
            self.problem = problem
            return
        with self.recording():
            if task.kind == "train":
                self.study.ended(task.trial.id, error, cause_of(error))
            else:
                self.study.tested(task.trial.id, error)
        self.progress.ended(task, error)

    def look_for_lost(self, trials: list[TuneTrial]) -> None:
        """Hear of trials Tune ended without telling anybody (an actor that was not ready to be reused in time)."""
        if self.tasks:
            self._first.look(any(trial.status == TuneTrial.RUNNING for trial in trials))
            for trial in trials:
                if trial.trial_id in self.tasks and trial.status in (TuneTrial.ERROR, TuneTrial.TERMINATED):
                    self.ended(trial.trial_id, _error_text(trial))


def _not_the_trial(error: str) -> OSError | ValueError | None:
    """The problem behind a worker's error that every other trial would have too, out of Ray's text of it."""
    if full := re.search(r"StoreUnavailableError: ([^\n]+)", error):
        return StoreUnavailableError(errno.EIO, full[1])
    if other := re.search(r"SourcesDifferError: ([^\n]+)", error):
        return SourcesDifferError(other[1])
    return None


def cause_of(error: str | None) -> Cause:
    """What a worker's error says happened, by our own words in it or Ray's: its memory monitor's, of lost nodes."""
    if error is None:
        return "failure"
    if "OutOfMemory" in error or "running low on memory" in error:
        return "memory"
    return "preemption" if "PreemptedError" in error or NODE_LOST.search(error) else "failure"


class PlannerSearcher(Searcher):
    """Tune's source of trials is our planner; it also limits how many run at once."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(metric="val_loss", mode="min")
        self.bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        return self.bridge.next_config(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        # Errors come with their text through EndCallback.on_trial_error.
        if not error:
            self.bridge.ended(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: our store is the only truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a new run plans from our store."""


class RungScheduler(FIFOScheduler):
    """Applies the study's decisions at rungs."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.bridge = bridge
        self._kept = 0

    def on_trial_add(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        if not self._kept:
            _use_preloaded_workers(tune_controller, trial)
        if self.bridge.slots > self._kept:
            _keep_actors(tune_controller, trial, self.bridge.slots - self._kept)
            self._kept = self.bridge.slots
        # Actors that end by themselves are not killed before; this is for those in mid-training at an interrupt.
        tune_controller._actor_force_cleanup_timeout = SECONDS_TO_STOP

    def on_trial_result(
        self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        goes_on = self.bridge.reported(trial.trial_id, result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


def _keep_actors(controller: TuneController, trial: TuneTrial, n: int) -> None:
    """Let `n` more idle actors live, as many as trials may run at once, while a phase waits for its last ones.

    Tune would keep one and end the others. A new one takes seconds to start, and is dropped again when the trial that
    waits for it finds a warm one first: short trials would run one after the other from then on.
    """
    controller._actor_cache.increase_max(trial.placement_group_factory, n)


def _use_preloaded_workers(controller: TuneController, trial: TuneTrial) -> None:
    """Start actors in the workers that have everything imported, where the cluster is our own.

    Tune gives its actors a runtime environment, of settings that our workers inherit anyway; for any environment Ray
    starts new processes.
    """
    if not ray.get_runtime_context().runtime_env:
        trainable = trial.get_trainable_cls()
        controller._class_cache._cache[trainable] = ray.remote(trainable)


class EndCallback(Callback):
    """Hears of every ending, also of those Tune does not tell its searcher about."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self.bridge.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        _raise_if_lost()  # then no trial is to blame
        self.bridge.ended(trial.trial_id, _error_text(trial))

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        _raise_if_lost()
        self.bridge.look_for_lost(trials)
        if self.bridge.held is not None:
            self.bridge.held.look()
        self.bridge.progress.tick()


class _Lost(BaseException):
    """Passes Tune's own handling of errors, which would wait for the dead to answer."""


def _raise_if_lost() -> None:
    if lost := lost_processes():
        raise _Lost(lost_message(lost))


class HaltStopper(Stopper):
    """Ends the run when no trial can go on."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.bridge.problem is not None


def _error_text(trial: TuneTrial) -> str:
    with contextlib.suppress(Exception):
        if trial.error_file:
            return Path(trial.error_file).read_text()[-4000:]
    return "failed without a message"


def run_study(
    study: Study,
    *,
    slots: int,
    cpus: float,
    gpus: float,
    root: Place,
    progress: Progress,
    caches: Caches,
    recount: Recount | None = None,
    trainable: Callable[[dict[str, Any]], None] = fabric_trial,
) -> bool:
    """Run a study to its end inside an initialised Ray; False when it was interrupted.

    `recount` says how many trials a cluster that has grown takes at once; `trainable` does a task inside a worker.
    Raises StoreUnavailableError when nothing more can be recorded, SourcesDifferError when a worker runs other code,
    ClusterLostError when Ray dies; the same call goes on later.
    """
    folder = tune_folder(root)
    number = 1 + max((int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()), default=0)
    settings = {"invocation": number, "source_hash": source_hash()}
    bridge = Bridge(study, slots, progress, caches, settings, recount)
    resources: dict[str, float] = {"cpu": cpus, **({"gpu": gpus} if gpus else {})}
    if not study.job.config.resources.ranks.is_alone:
        # The actor only holds its worker group, which asks for what it needs itself; Ray wants some resource named.
        resources = {"cpu": 0, "node:__internal_head__": 0.001}
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=PlannerSearcher(bridge),
            scheduler=RungScheduler(bridge),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=str(number),
            storage_path=str(folder.resolve()),
            callbacks=[EndCallback(bridge)],
            stop=HaltStopper(bridge),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    try:
        with clean_stop(bridge.interrupt), told_when_full(folder):
            tuner.fit()
    except _Lost as lost:
        raise ClusterLostError(str(lost)) from None
    except Exception:
        # Tune stumbles over its own records where the disk is full (it reads again what it could not write).
        if bridge.problem is None:
            raise
    finally:
        if bridge.held is not None:
            bridge.held.end()
    if bridge.problem is not None:
        raise bridge.problem
    return not bridge.interrupted


def _name(trial: TuneTrial) -> str:
    config = trial.config
    return f"{config.get('trial', 'trial')}-{config.get('kind', '')}-{trial.trial_id}"
