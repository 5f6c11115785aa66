"""Tasks of many targets over the workers of a Ray cluster: Ray Data hands them to a pool of actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import ray.data

from fabric.measuring import Request, measure_one, subject_of
from fabric.runtime.connect import cluster
from fabric.runtime.data import quiet
from fabric.runtime.worker import same_sources
from fabric.sources import source_hash


class Evaluator:
    """An actor: measures a task of a target, and keeps the result where the driver finds it."""

    def __init__(self, asked: dict[str, Any], sources: str) -> None:
        import torch

        same_sources(sources)
        torch.set_num_threads(1)
        self.asked = Request(**asked)
        self.subject: tuple[str, Any] | None = (
            None  # the last target's: tasks of one come one after the other
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        return {"error": [self._measured(*pair) for pair in zip(batch["target"], batch["task"], strict=True)]}

    def _measured(self, target: str, task: str) -> str:
        try:
            if self.subject is None or self.subject[0] != target:
                self.subject = None
                self.subject = target, subject_of(target, self.asked.precision)
            measure_one(target, task, self.asked, self.subject[1])
        except (
            ValueError
        ) as wrong:  # as a value: of an exception Ray brings home only text wrapped in its own
            return f"{target}, {task}: {wrong}"
        return ""


def measure_with_ray(targets: Sequence[str], asked: Request, workers: int, address: str | None) -> None:
    """Measure what is not kept yet. Raises ValueError as a measurement in this process does, after all were tried."""
    rows = [{"target": target, "task": task} for target in targets for task in asked.tasks]
    with cluster(address, workers), quiet():
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Evaluator,
            fn_constructor_kwargs={"asked": asdict(asked), "sources": source_hash()},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
            num_cpus=1,
        )
        errors = [row["error"] for row in done.iter_rows() if row["error"]]
    if errors:
        raise ValueError(errors[0] + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""))
