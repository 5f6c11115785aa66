"""`fabric.measure`: a trained model on tasks, with intervals and the level of guessing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fabric.evaluate.options import Outcome, load_items, score_items
from fabric.evaluate.scores import Score
from fabric.evaluate.tasks import task as task_of
from fabric.evaluate.tasks import tasks as known_tasks
from fabric.paths import real_path

if TYPE_CHECKING:
    from fabric.store import Url


@dataclass(frozen=True)
class Measured:
    """What a target scored on one task: metrics, the first of them the headline, and every item's outcome.

    `n_cut`: contexts that were longer than the model takes, and lost their beginning.
    """

    task: str
    n_shots: int
    calibrated: bool
    scores: dict[str, Score]
    n_items: int
    n_cut: int
    seconds: float
    outcomes: tuple[Outcome, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, every item's outcome among it."""
        scores = {name: {**asdict(s), "is_chance": s.is_chance} for name, s in self.scores.items()}
        return {**asdict(self), "scores": scores}


def measure(
    target: str | Path | Url,
    tasks: Iterable[str],
    *,
    data: str | Path | None = None,
    shots: int = 0,
    calibrated: bool = False,
    limit: int | None = None,
    seed: int = 0,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> list[Measured]:
    """A trial's, a Hugging Face folder's or a GGUF file's scores on tasks, in the order they are named.

    `data`: the folder that holds the tasks' files (default: $FABRIC_DATA; without either they come from the hub).
    `shots`: solved examples before each prompt, the same for all, drawn by `seed`. `limit`: items of each task, the
    first ones. Raises ValueError for an unknown task, and for data that is missing or not as it should be, before the
    model is loaded; then for an option that is longer than the model's context.
    """
    folder = data if data is not None else os.environ.get("FABRIC_DATA")
    chosen = [task_of(name) for name in tasks]
    if not chosen:
        raise ValueError(f"no task is named; give some of {', '.join(known_tasks())}")
    place = None if folder is None else real_path(Path(folder))
    items = [
        load_items(task, place, n_shots=shots, limit=limit, calibrated=calibrated, seed=seed)
        for task in chosen
    ]

    from fabric.evaluate.subject import Subject
    from fabric.trained import load_trained

    subject = Subject.of(load_trained(target), precision)
    found = []
    for task, its in zip(chosen, items, strict=True):
        began = time.perf_counter()
        result = score_items(task, its, subject)
        seconds = time.perf_counter() - began
        found.append(
            Measured(
                task.name, shots, calibrated, result.scores, len(its), result.n_cut, seconds, result.outcomes
            )
        )
    return found
