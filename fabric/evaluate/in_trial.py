"""Tasks measured inside a trial: `evaluate: {tasks: [blimp, "sst2:shots=4"], tasks_times: 3}`.

Items are read and encoded before anything is trained, so that a mistake costs no training. A headline's key is
`task.<task>.<metric>`; every metric with its interval and every item's outcome stand beside the trial's record.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fabric.data.example_cache import ExampleCache
from fabric.evaluate.task import Asked, Ran, Task
from fabric.evaluate.tasks import task as task_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fabric.data import TokenCache
    from fabric.data.tokenizer import Tokenizer
    from fabric.evaluate.config import EvaluateConfig
    from fabric.evaluate.scores import Score
    from fabric.planning.trial import TrialSpec
    from models import ModelConfig

PREFIX = "task."


def metric_key(task: Task) -> str:
    """The key of a task's headline."""
    return f"{PREFIX}{task.label}.{next(iter(task.measures))}"


def load_tasks(config: EvaluateConfig) -> list[tuple[Task, Sequence[Any]]]:
    """The tasks of a job and their items. Raises ValueError for unknown ones, and for data that is not as it should."""
    folder = config.tasks_data or (Path(env) if (env := os.environ.get("FABRIC_DATA")) else None)
    chosen = [task_of(text) for text in config.tasks]
    return [(task, task.load(Asked(folder, config.tasks_limit))) for task in chosen]


class TrialTasks:
    """A trial's tasks, ready to be asked of its model at any step."""

    def __init__(
        self, config: EvaluateConfig, model: ModelConfig, tokenizer: Tokenizer, precision: str
    ) -> None:
        from fabric.evaluate.subject import Subject
        from fabric.trained import Trained

        self._model: Any = None
        trained = Trained(Path(), model, tokenizer, lambda: self._model)
        self.subject = Subject.of(trained, precision)
        self.ready = [(task, task.prepare(items, self.subject)) for task, items in load_tasks(config)]

    def measure(self, model: Any, said: Sequence[Any] = ()) -> tuple[dict[str, float], dict[str, Any]]:
        """Each task's headline by its key; and by task all scores, remarks and outcomes. The model is in eval mode;
        what it has `said` to rows of its own is no answer to a task."""
        self._model = model
        headlines: dict[str, float] = {}
        beside: dict[str, Any] = {}
        for task, prepared in self.ready:
            ran = task.run(prepared, self.subject)
            scores = task.scores(ran.outcomes)
            headlines[metric_key(task)] = next(iter(scores.values())).value
            beside[task.label] = _kept(scores, ran)
        return headlines, beside


class OwnExamples:
    """What a trial answers by a readout: the examples of a split of its own, by their official metrics."""

    def __init__(
        self, spec: TrialSpec, cache: TokenCache, split: Literal["validation", "test"] = "validation"
    ) -> None:
        from fabric.evaluate.examples import Asked as Rows

        assert isinstance(cache, ExampleCache)
        evaluate = spec.evaluate
        most = evaluate.final_val_tokens if split == "validation" else evaluate.test_tokens
        rows = None if most is None else most // cache.seq_len
        self.spec, self.rows = spec, Rows.of_cache(cache, split).within(rows)
        self.remarks = cache.remarks(split)

    def measure(self, model: Any, said: Sequence[Any] = ()) -> tuple[dict[str, float], dict[str, Any]]:
        """As `TrialTasks.measure`, of one task: `examples`, with all of its metrics. What the model has `said` to the
        split's first rows (`LMScore.said`) is not asked again."""
        from fabric.evaluate.examples import outcomes_of

        train, examples = self.spec.train, self.spec.data.examples
        assert examples is not None
        task = task_of("examples")
        found = outcomes_of(model, train.objective, examples, self.rows, said=said, precision=train.precision)
        ran = Ran(found, self.remarks)
        scores = task.scores(ran.outcomes)
        values = {
            f"{PREFIX}{task.label}.{name}": s.value for name, s in scores.items() if name in task.measures
        }
        return values, {task.label: _kept(scores, ran)}


def _kept(scores: Mapping[str, Score], ran: Ran) -> dict[str, Any]:
    return {
        "scores": {name: {**asdict(s), "is_chance": s.is_chance} for name, s in scores.items()},
        "remarks": list(ran.remarks),
        "outcomes": list(ran.outcomes),
    }
