"""A trial's own labelled examples, of the test split or of another size (`fabric.evaluate.examples`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import ValidationError

from fabric.data.examples.labelled import LabelledExamples
from fabric.evaluate import task as tasks
from fabric.evaluate.example_measures import known, measures_of
from fabric.evaluate.task import Outcome, Ran, Task

if TYPE_CHECKING:
    from pathlib import Path

    from fabric.data.examples.base import ExamplesConfig
    from fabric.evaluate.examples import Asked
    from fabric.evaluate.measures import Measure
    from fabric.evaluate.subject import Subject


FIXED = ("split_seed", "n_train")  # of labelled examples: what decides which of them were trained on


class Prepared(NamedTuple):
    """Rows, what they are examples of, and what a reader of their scores must know."""

    asked: Asked
    examples: ExamplesConfig
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ExamplesTask(Task):
    """What a trial was trained to answer. Settings: `split`, and any of its examples' own (`n_pairs=8`), or `seq_len`:
    the same task at another size."""

    KIND: ClassVar[str] = "examples"
    REVISION: ClassVar[int] = 3  # a question's answer does not depend on what else is asked
    SETTINGS: ClassVar[tuple[str, ...]] = ("split",)

    split: Literal["validation", "test"] = "test"
    changes: tuple[tuple[str, Any], ...] = ()

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        own = {k: v for k, v in settings.items() if k in self.SETTINGS}
        others = tuple((k, _value(v)) for k, v in settings.items() if k not in self.SETTINGS)
        return replace(super().with_settings(own), changes=others)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **dict(self.changes)}

    def check(self, subject: Subject) -> None:
        trial = subject.trained.trial
        if trial is None or trial.spec.data.examples is None:
            raise ValueError(
                f"{subject.trained.source} was not trained on labelled examples (data.examples), so it has none to be "
                "asked; name another task"
            )

    def load(self, asked: tasks.Asked) -> Sequence[Any]:
        """Nothing but how many: what is asked is the target's to say."""
        return [asked.limit]

    def depends_on(self, subject: Subject, cache_root: Path) -> Any:
        """The rows of a trial as it was are its own; of changed settings, the files they are made of count."""
        trial = subject.trained.trial
        if not self.changes or trial is None or trial.spec.data.examples is None:
            return None
        changes = {name: value for name, value in self.changes if name != "seq_len"}
        return _changed(trial.spec.data.examples, changes).identity(cache_root)

    def prepare(self, items: Sequence[Any], subject: Subject) -> Prepared:
        """Raises ValueError for settings that its examples have not, or that its model cannot take."""
        from fabric.evaluate.examples import Asked

        trained = subject.trained
        assert trained.trial is not None
        spec = trained.trial.spec
        examples = spec.data.examples
        assert examples is not None
        if not self.changes:
            cache = trained.trial.cache()
            return Prepared(
                Asked.of_cache(cache, self.split).first(items[0]), examples, cache.remarks(self.split)
            )
        changes = dict(self.changes)
        seq_len = changes.pop("seq_len", spec.data.seq_len)
        changed = _changed(examples, changes)
        _check_fits(changed, seq_len, subject)
        if (changed.asks, changed.n_answers) != (examples.asks, examples.n_answers):
            raise ValueError(
                f"task examples: the model was trained to choose one of {examples.n_answers} answers, and these ask "
                f"for one of {changed.n_answers}; choose examples with the same"
            )
        built = changed.built(self.split, seq_len, trained.tokenizer if changed.READS_TEXT else None)
        remarks = built.remarks
        if isinstance(changed, LabelledExamples):
            remarks += _seen_by_the_trial(changed, examples, self.split, remarks)
        return Prepared(Asked.of_built(built).first(items[0]), changed, remarks)

    def run(self, prepared: Prepared, subject: Subject) -> Ran:
        from fabric.evaluate.examples import outcomes_of

        assert subject.trained.trial is not None
        objective = subject.trained.trial.spec.train.objective
        found = outcomes_of(
            subject.trained.model,
            objective,
            prepared.examples,
            prepared.asked,
            precision=subject.precision,
        )
        return Ran(found, prepared.remarks)

    @property
    def measures(self) -> Mapping[str, Measure]:
        """Those that any examples may have."""
        return known()

    def measures_of(self, outcomes: Sequence[Outcome]) -> Mapping[str, Measure]:
        return measures_of(outcomes)


def _seen_by_the_trial(changed: Any, trained: Any, split: str, said: tuple[str, ...]) -> tuple[str, ...]:
    """What is to be said of items that the trial was trained on, where it is not said already."""
    found = changed.trained_on(trained, split, changed.items(split)[0])
    return tuple(remark for remark in found if remark not in said)


def _value(text: Any) -> Any:
    """A setting's value: JSON where it is that, else text."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def _changed(examples: ExamplesConfig, changes: Mapping[str, Any]) -> ExamplesConfig:
    body = {**examples.model_dump(), **changes}
    if isinstance(examples, LabelledExamples) and (fixed := [n for n in FIXED if n in changes]):
        raise ValueError(f"task examples: {', '.join(fixed)}: what was trained on is as it is; leave it out")
    try:
        return type(examples).model_validate(body)
    except ValidationError as error:
        wrong = error.errors()[0]
        names = ", ".join(n for n in type(examples).model_fields if n != "kind")
        where = ".".join(map(str, wrong["loc"])) or "its settings"
        raise ValueError(
            f"task examples: {where}: {wrong['msg']} (examples {examples.kind} have {names}; beside them seq_len)"
        ) from None


def _check_fits(examples: ExamplesConfig, seq_len: Any, subject: Subject) -> None:
    """Raise ValueError where the model takes no rows of that length, or not all of their ids."""
    if not isinstance(seq_len, int) or isinstance(seq_len, bool) or seq_len < 2:
        raise ValueError(f"task examples: seq_len={seq_len!r} is no number of positions; give one from 2 on")
    if seq_len > subject.max_seq_len:
        raise ValueError(
            f"task examples: seq_len={seq_len} is more than the model's max_seq_len={subject.max_seq_len}"
        )
    examples.check(seq_len)
    n_ids = subject.trained.config.vocab_size
    if not examples.READS_TEXT and examples.n_ids > n_ids:
        raise ValueError(f"task examples: {examples.n_ids} ids, and the model has {n_ids}; ask for fewer")


TASKS = (ExamplesTask(name="examples", about="what a trial was trained to answer"),)
