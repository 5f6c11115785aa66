"""`fabric.measure`: trained models on tasks, with intervals and the level of guessing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fabric.data.disk import sha256_of, write_atomic
from fabric.evaluate import kept
from fabric.evaluate.scores import Score
from fabric.evaluate.task import Asked, Outcome, Task
from fabric.evaluate.tasks import task as task_of
from fabric.evaluate.tasks import tasks as known_tasks
from fabric.paths import real_path
from fabric.store import dump_json

if TYPE_CHECKING:
    from fabric.evaluate.harness import Harnessed, HarnessTasks
    from fabric.evaluate.subject import Subject
    from fabric.store import Url

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Measured:
    """What a target scored on one task: metrics, the first of them the headline, and every item's outcome.

    `task`: its name with its settings. `remarks`: what a reader of the scores must know. `path`: the file that keeps
    the result; `was_kept`: it was there before.
    """

    target: str
    task: str
    scores: dict[str, Score]
    n_items: int
    remarks: tuple[str, ...]
    seconds: float
    outcomes: Sequence[Outcome] = field(repr=False)
    path: Path | None = None
    was_kept: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data, every item's outcome among it."""
        scores = {name: {**asdict(s), "is_chance": s.is_chance} for name, s in self.scores.items()}
        return {**asdict(self), "scores": scores, "path": None if self.path is None else str(self.path)}


@dataclass(frozen=True)
class Request:
    """What is asked of targets: tasks as written, where their data is, and how."""

    tasks: tuple[str, ...]
    data: str | None
    limit: int | None
    seed: int
    precision: Precision
    out: str | None

    @property
    def asked(self) -> Asked:
        return Asked(None if self.data is None else Path(self.data), self.limit, self.seed)

    def load(self) -> list[tuple[Task, Sequence[Any]]]:
        """The tasks and their items. Raises ValueError for what is unknown, missing or not as it should be."""
        chosen = [task_of(text) for text in self.tasks]
        if not chosen:
            raise ValueError(f"no task is named; give some of {', '.join(known_tasks())}")
        labels = [task.label for task in chosen]
        if twice := sorted({name for name in labels if labels.count(name) > 1}):
            raise ValueError(f"task {', '.join(twice)} is named twice")
        return [(task, task.load(self.asked)) for task in chosen]


def measure(
    target: str | Path | Url,
    tasks: Iterable[str],
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    out: str | Path | None = None,
) -> list[Measured]:
    """A trial's, a Hugging Face folder's or a GGUF file's scores on tasks, in the order they are named.

    A task is a name, with settings behind it where it has some: `sst2:shots=4`. `data`: the folder that holds the
    tasks' files (default: $FABRIC_DATA; without either they come from the hub). `limit`: items of each task, the first
    ones. `seed`: of what is drawn, few-shot examples say. `out`: the folder that keeps results; what it holds already
    is not measured again. Raises ValueError for an unknown task or setting, for data that is missing or not as it
    should be, and for an option that does not fit the model, all before the weights are read.
    """
    return measure_all([target], tasks, data=data, limit=limit, seed=seed, precision=precision, out=out)[0]


def measure_all(
    targets: Iterable[str | Path | Url],
    tasks: Iterable[str],
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    out: str | Path | None = None,
    workers: int = 0,
    address: str | None = None,
) -> list[list[Measured]]:
    """The scores of several targets, each as `measure` gives them, in the targets' order.

    With `workers`, so many Ray actors (of one CPU each) take the tasks of the targets in turn; the results are the
    same. `address`: of a Ray cluster to join. Raises ValueError as `measure`, and for workers without `out`.
    """
    folder = data if data is not None else os.environ.get("FABRIC_DATA")
    asked = Request(
        tuple(tasks),
        None if folder is None else str(real_path(Path(folder))),
        limit,
        seed,
        precision,
        None if out is None else str(real_path(Path(out))),
    )
    names = [str(target) for target in targets]
    if not names:
        raise ValueError("no target is named; give a trial's folder, a Hugging Face folder or a .gguf file")
    loaded = asked.load()
    if workers:
        from fabric.runtime.evaluating import measure_with_ray

        if asked.out is None:
            raise ValueError("workers hand their results over in a folder; name it (out)")
        measure_with_ray(names, asked, workers, address)
    return [_measured(name, asked, loaded) for name in names]


def measure_with_harness(
    targets: Iterable[str | Path | Url],
    tasks: Iterable[str] | HarnessTasks,
    *,
    limit: int | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    out: str | Path | None = None,
) -> list[Harnessed]:
    """The scores that lm-evaluation-harness finds for targets on its tasks (names, or paths of their YAML files;
    or what `harness_tasks` made of these). `out`: the folder that keeps them; they are measured each time.

    Raises ValueError where it is not installed, for a task it does not know, and for data it cannot get.
    """
    from fabric.evaluate.harness import HarnessTasks, harness_tasks, run_harness

    asked = tasks if isinstance(tasks, HarnessTasks) else harness_tasks(list(tasks))
    found: list[Harnessed] = []
    for target in map(str, targets):
        subject = subject_of(target, precision)
        subject.trained.check_language_model()
        results = run_harness(subject, target, asked, limit=limit, seed=seed)
        how = {"limit": limit, "seed": seed, "precision": precision}
        found += (
            results if out is None else [_kept_beside(h, subject, how, real_path(Path(out))) for h in results]
        )
    return found


def _kept_beside(harnessed: Harnessed, subject: Subject, how: dict[str, Any], out: Path) -> Harnessed:
    """The result with its file. What the harness read is its own to know, so nothing is taken for measured already."""
    key = kept.target_key(subject.trained, out / ".cache")
    name = f"harness-{harnessed.task}-{sha256_of({**how, 'version': harnessed.version})[:16]}.json"
    path = out / "evaluations" / key[:16] / name.replace("/", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    found = replace(harnessed, path=str(path))
    write_atomic(path, dump_json({**found.as_dict(), **how}))
    return found


def measure_one(target: str, task: str, asked: Request, subject: Subject) -> None:
    """Measure one task of a target, and keep it (a worker's part)."""
    one = replace(asked, tasks=(task,))
    _measured(target, one, one.load(), subject)


def subject_of(target: str, precision: Precision) -> Subject:
    """A target, ready to be asked; its weights are read later. Raises ValueError where there is none."""
    from fabric.evaluate.subject import Subject
    from fabric.trained import find_trained

    return Subject.of(find_trained(target), precision)


def _measured(
    target: str,
    asked: Request,
    loaded: Sequence[tuple[Task, Sequence[Any]]],
    subject: Subject | None = None,
) -> list[Measured]:
    subject = subject or subject_of(target, asked.precision)
    places = _places(asked, loaded, subject)
    known = [None if place is None else kept.find(place) for place in places]
    for task, _ in loaded:
        task.check(subject)
    prepared = [
        None if result else task.prepare(items, subject)
        for (task, items), result in zip(loaded, known, strict=True)
    ]
    if None in known:
        assert subject.trained.model is not None  # reads the weights, which no task's time should hold
    found = []
    for (task, items), place, result, ready in zip(loaded, places, known, prepared, strict=True):
        was_kept = result is not None
        if result is None:
            began = time.perf_counter()
            ran = task.run(ready, subject)
            result = kept.Result(ran, time.perf_counter() - began)
            if place is not None:
                about = {"target": target, "task": task.label, "n_items": len(items)}
                kept.keep(
                    place, result, about | {k: getattr(asked, k) for k in ("limit", "seed", "precision")}
                )
        ran, seconds = result
        scores = task.scores(ran.outcomes)
        found.append(
            Measured(
                target,
                task.label,
                scores,
                len(ran.outcomes),
                ran.remarks,
                seconds,
                ran.outcomes,
                place,
                was_kept,
            )
        )
    return found


def _places(
    asked: Request, loaded: Sequence[tuple[Task, Sequence[Any]]], subject: Subject
) -> list[Path | None]:
    """Where each task's result is kept."""
    if asked.out is None:
        return [None] * len(loaded)
    out = Path(asked.out)
    cache_root = out / ".cache"
    key = kept.target_key(subject.trained, cache_root)
    places: list[Path | None] = []
    for task, items in loaded:
        beside = task.depends_on(subject, cache_root)
        result = kept.result_key(task, asked.asked, items, asked.precision, beside)
        places.append(kept.place_of(out, key, task, result))
    return places
