"""What every kind of task is: a declaration that loads items, asks a model, and says what its answers are worth.

A kind is one file of `fabric/evaluate/`, a subclass of `Task`; the tasks themselves are instances of it, a few lines
each, in `fabric/evaluate/tasks/`. What a model made of the items are its *outcomes*, plain JSON, one an item, in the
items' order: they alone are kept, and every score, interval and comparison is a function of them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

from pydantic import TypeAdapter, ValidationError

from models.parts import meant

if TYPE_CHECKING:
    from fabric.evaluate.measures import Measure
    from fabric.evaluate.scores import Difference, Score
    from fabric.evaluate.subject import Subject

Outcome = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is asked of every task alike: where data is (None: the hub), its first `limit` items, what draws go by."""

    folder: Path | None = None
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Ran:
    """Every item's outcome in order, plain JSON, and what a reader of scores must know (texts that were cut, say)."""

    outcomes: Sequence[Outcome]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Base of the kinds. `about`: what the task asks, in a few words.

    `SETTINGS`: the fields a user may set (`sst2:shots=4`); the others are the task's own. A field of that name must
    have a type that pydantic reads. `REVISION` is raised when the same items would get other outcomes.
    """

    KIND: ClassVar[str]
    REVISION: ClassVar[int] = 1
    SETTINGS: ClassVar[tuple[str, ...]] = ()

    name: str
    about: str

    def check(self, subject: Subject) -> None:
        """Raise ValueError for a target that cannot be asked: most tasks ask a causal language model."""
        subject.trained.check_language_model()

    @abstractmethod
    def load(self, asked: Asked) -> Sequence[Any]:
        """The items, read before any model. Raises TaskDataError (missing, not as it should be), ValueError."""

    def depends_on(self, subject: Subject, cache_root: Path) -> Any:
        """What a result depends on beside the items and the subject's weights, as plain values."""
        return None

    def prepare(self, items: Sequence[Any], subject: Subject) -> Any:
        """What `run` takes: the items encoded, and checked against the model's length.

        `subject` knows tokenizer and length; its weights are read later. Raises TaskDataError for an item that the
        model cannot be asked.
        """
        return items

    @abstractmethod
    def run(self, prepared: Any, subject: Subject) -> Ran:
        """Ask the model. Outcomes do not depend on how items are put into batches, but for rounding."""

    @property
    @abstractmethod
    def measures(self) -> Mapping[str, Measure]:
        """The metrics by name, the headline first."""

    def measures_of(self, outcomes: Sequence[Outcome]) -> Mapping[str, Measure]:
        """The metrics of some outcomes, the headline first."""
        return self.measures

    def scores(self, outcomes: Sequence[Outcome]) -> dict[str, Score]:
        """Every metric of the outcomes, with interval and level of guessing."""
        return {name: measure.score(outcomes) for name, measure in self.measures_of(outcomes).items()}

    def differences(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> dict[str, Difference]:
        """B minus A in every metric, paired by item."""
        return {name: measure.difference(a, b) for name, measure in self.measures_of(a).items()}

    # ---- settings

    def settings(self) -> dict[str, Any]:
        """What was set away from its default, by name."""
        defaults = {f.name: f.default for f in fields(self)}
        return {n: v for n in self.SETTINGS if (v := getattr(self, n)) != defaults[n]}

    @property
    def label(self) -> str:
        """Name and settings, as a user writes them: `sst2:shots=4,calibrated=true`."""
        given = [f"{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in self.settings().items()]
        return self.name + (":" + ",".join(given) if given else "")

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """The task with other settings; texts are read as values. Raises ValueError for an unknown or wrong one."""
        hints, values = get_type_hints(type(self), include_extras=True), {}
        for name, value in settings.items():
            if name not in self.SETTINGS:
                hint = meant(name, self.SETTINGS)
                known = ", ".join(self.SETTINGS) or "none"
                raise ValueError(f"task {self.name} has no setting {name!r} (it has: {known}){hint}")
            try:
                values[name] = TypeAdapter(hints[name]).validate_python(value)
            except ValidationError as error:
                raise ValueError(f"task {self.name}: {name}={value!r}: {error.errors()[0]['msg']}") from None
        try:
            return replace(self, **values)
        except ValueError as error:
            raise ValueError(f"task {self.name}: {error}") from None
