"""A study run by Ray Tune: one Tuner for all phases, a searcher that asks the planner, a scheduler that applies its
decisions. Tune's own records are written for its tools to read (`tune/<n>`); we never read them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from fabric.planning.study import Study, Task
from fabric.runtime.connect import clean_stop, source_hash
from fabric.runtime.worker import fabric_trial
from fabric.sweeping import Caches, Progress, task_body

MAX_CONSECUTIVE_FAILURES = 10


class Bridge:
    """Between Tune's trial ids and the study's tasks; every Tune callback ends here, each ending once."""

    def __init__(
        self, study: Study, slots: int, progress: Progress, caches: Caches, settings: dict[str, Any]
    ) -> None:
        self.study, self.slots, self.progress = study, slots, progress
        self.caches, self.settings = caches, {**settings, "cache": str(caches.root)}
        self.tasks: dict[str, Task] = {}
        self.interrupted = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it is given into its records, and none of this belongs there."""
        return {}

    def interrupt(self) -> None:
        self.interrupted = True
        self.progress.interrupted()

    def next_config(self, tune_id: str) -> dict[str, Any] | str | None:
        if self.interrupted:
            return Searcher.FINISHED
        if len(self.tasks) >= self.slots:
            return None
        task = self.study.next_task()
        if isinstance(task, str):
            return Searcher.FINISHED if task == "done" and not self.tasks else None
        self.tasks[tune_id] = task
        self.caches.ensure(task)
        self.progress.started(task)
        return self._config(task)

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
        if task is None or task.kind != "train":
            return True
        action = self.study.reported(task.trial.id, row)
        self.progress.reported(task, row, action)
        return action == "continue"

    def ended(self, tune_id: str, error: str | None = None) -> None:
        task = self.tasks.pop(tune_id, None)
        if task is None:
            return
        if self.interrupted:
            return
        if task.kind == "train":
            out_of_memory = error is not None and ("OutOfMemory" in error or "out_of_memory" in error)
            self.study.ended(task.trial.id, error, out_of_memory)
        self.progress.ended(task, error)


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

    def on_trial_result(
        self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        goes_on = self.bridge.reported(trial.trial_id, result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class EndCallback(Callback):
    """Hears of every ending, also of those Tune does not tell its searcher about."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self.bridge.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.bridge.ended(trial.trial_id, _error_text(trial))

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self.bridge.progress.tick()


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
    root: Path,
    progress: Progress,
    caches: Caches,
) -> bool:
    """Run a study to its end inside an initialised Ray; False when it was interrupted."""
    number = 1 + max((int(p.name) for p in (root / "tune").glob("[0-9]*") if p.name.isdigit()), default=0)
    bridge = Bridge(study, slots, progress, caches, {"invocation": number, "source_hash": source_hash()})
    resources = {"cpu": cpus, **({"gpu": gpus} if gpus else {})}
    tuner = tune.Tuner(
        tune.with_resources(fabric_trial, resources),
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
            storage_path=str((root / "tune").resolve()),
            callbacks=[EndCallback(bridge)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    with clean_stop(bridge.interrupt):
        tuner.fit()
    return not bridge.interrupted


def _name(trial: TuneTrial) -> str:
    config = trial.config
    return f"{config.get('trial', 'trial')}-{config.get('kind', '')}-{trial.trial_id}"
