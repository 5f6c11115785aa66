"""A `TorchTrainer` of as few processes as its ranks allow: a group is up as soon as they are."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.torch.torch_trainer import TorchTrainer

# Nothing that would have to be set in the ranks' environment: Ray starts processes of their own for any.
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # our watch of nodes that leave is `notices`


class _Ranks(WorkerGroup):
    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> dict[str, Any]:
        """None but the job's: then ranks begin in the workers that have everything imported."""
        return dict(custom_runtime_env)


class _Controller(TrainController):
    worker_group_cls = _Ranks


class _Fixed(FixedScalingPolicy):
    """A number of workers, asked for by their placement group alone.

    Ray Train would also tell an actor of Ray Data's, which then stays on the cluster.
    """

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Nobody is told."""

    def _maybe_send_resource_request(self) -> None:
        """Nobody is told."""


class GroupTrainer(TorchTrainer):
    """Where Ray Train starts five processes beside every group, this one starts one (Ray's of barriers).

    The controller runs in the calling thread. What a dead group held is given back by our driver: Ray Train's cleaner
    asks a dashboard, and without one it stays for ever. There are no datasets to manage: a stream's belong to a trial.
    """

    def _create_default_callbacks(self) -> list[Any]:
        found: list[Any] = super()._create_default_callbacks()
        return [c for c in found if not isinstance(c, PlacementGroupCleanerCallback | DatasetsCallback)]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        scaling: Any = self.scaling_config
        settings["scaling_policy"] = _Fixed(scaling)

        async def run() -> Any:
            controller = _Controller(**settings)
            await controller.run()
            return controller.get_result()

        return asyncio.run(run())
