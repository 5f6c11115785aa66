"""`fabric.measure`: a trained model on tasks, with intervals and the level of guessing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fabric.evaluate.scores import Score
from fabric.evaluate.task import Asked, Outcome
from fabric.evaluate.tasks import task as task_of
from fabric.evaluate.tasks import tasks as known_tasks
from fabric.paths import real_path

if TYPE_CHECKING:
    from fabric.store import Url


@dataclass(frozen=True)
class Measured:
    """What a target scored on one task: metrics, the first of them the headline, and every item's outcome.

    `task`: its name with its settings. `remarks`: what a reader of the scores must know.
    """

    task: str
    scores: dict[str, Score]
    n_items: int
    remarks: tuple[str, ...]
    seconds: float
    outcomes: Sequence[Outcome]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, every item's outcome among it."""
        scores = {name: {**asdict(s), "is_chance": s.is_chance} for name, s in self.scores.items()}
        return {**asdict(self), "scores": scores}


def measure(
    target: str | Path | Url,
    tasks: Iterable[str],
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> list[Measured]:
    """A trial's, a Hugging Face folder's or a GGUF file's scores on tasks, in the order they are named.

    A task is a name, with settings behind it where it has some: `sst2:shots=4`. `data`: the folder that holds the
    tasks' files (default: $FABRIC_DATA; without either they come from the hub). `limit`: items of each task, the first
    ones. `seed`: of what is drawn, few-shot examples say. Raises ValueError for an unknown task or setting, for data
    that is missing or not as it should be, and for an option that does not fit the model, all before its weights are
    read.
    """
    folder = data if data is not None else os.environ.get("FABRIC_DATA")
    chosen = [task_of(text) for text in tasks]
    if not chosen:
        raise ValueError(f"no task is named; give some of {', '.join(known_tasks())}")
    asked = Asked(None if folder is None else real_path(Path(folder)), limit, seed)
    items = [task.load(asked) for task in chosen]

    from fabric.evaluate.subject import Subject
    from fabric.trained import find_trained

    subject = Subject.of(find_trained(target), precision)
    prepared = [task.prepare(its, subject) for task, its in zip(chosen, items, strict=True)]
    assert subject.model is not None  # reads the weights, which no task's time should hold
    found = []
    for task, its, ready in zip(chosen, items, prepared, strict=True):
        began = time.perf_counter()
        ran = task.run(ready, subject)
        seconds = time.perf_counter() - began
        scores = task.scores(ran.outcomes)
        found.append(Measured(task.label, scores, len(its), ran.remarks, seconds, ran.outcomes))
    return found
