"""Generation: a prompt is continued, an answer is taken out of the text, and scored against references.

The text ends at the model's end of text, at a stop string in the *decoded* text (a token may hold more than the string,
")\\n"), or after `max_new_tokens`. Greedy by default.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from fabric.data.rows import Row, Table, TaskDataError, read_table
from fabric.evaluate.measures import Among, Mean, Measure, Share
from fabric.evaluate.task import Asked, Outcome, Ran, Task

if TYPE_CHECKING:
    from fabric.evaluate.subject import Subject

Score = Callable[[Any, Sequence[Any]], float]  # of what was taken out of a text, and references: plain JSON
Source = Table | Callable[["Asked"], Sequence[Row]]
UNSEEN = 64  # of the last new tokens, decoded to find a stop string


@dataclass(frozen=True)
class Metric:
    """A score of what `filter` took out of the text; `is_share`: of 0 or 1 for every item.

    `among`: whether it is asked of an item with such references (None: of all).
    """

    filter: str
    score: Score
    is_share: bool = False
    among: Callable[[Sequence[Any]], bool] | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationTask(Task):
    """A task in a few lines: where its rows are, a row's prompt and references, where a text stops, how it is scored.

    `rows`: a table, or what reads rows from what is asked. `references`: of a row, each a text, or whatever plain JSON
    the metrics compare. `filters`: what takes an answer out of a text, by name. `metrics`: the headline first; `whole`:
    those that are no mean over items (BLEU). `solved`: an example as it is shown, with its answer, drawn from
    `examples` by the seed, the same ones for every item; `before`: what stands before all prompts instead. `requires`
    raises ValueError where what the task needs is not installed. Settings: `shots` examples, `max_new_tokens`,
    `temperature` (0: greedy), `top_p`, and `too_long`: a prompt that leaves no room loses its beginning ("left"), its
    middle, or is an error.
    """

    KIND: ClassVar[str] = "generation"
    SETTINGS: ClassVar[tuple[str, ...]] = ("shots", "max_new_tokens", "temperature", "top_p", "too_long")

    rows: Source
    prompt: Callable[[Row], str]
    references: Callable[[Row], Sequence[Any]]
    filters: Mapping[str, Callable[[str], Any]]
    metrics: Mapping[str, Metric]
    whole: Mapping[str, Measure] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    examples: Source | None = None
    solved: Callable[[Row], str] | None = None
    before: Callable[[], str] | None = None
    requires: Callable[[], object] | None = None
    shots: Annotated[int, Field(ge=0)] = 0
    max_new_tokens: Annotated[int, Field(ge=1)] = 50
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    too_long: Literal["left", "middle", "error"] = "left"

    def __post_init__(self) -> None:
        if self.shots and (self.examples is None or self.solved is None):
            raise ValueError("it has no training rows to draw examples from; leave shots out")
        if self.top_p is not None and not self.temperature:
            raise ValueError(f"top_p={self.top_p} does nothing at temperature 0; set temperature too")

    def load(self, asked: Asked) -> list[Item]:
        """Raises TaskDataError where data is missing or not as it should be; ValueError where a package is."""
        if self.requires is not None:
            self.requires()
        before = (self.before() if self.before else "") + self._examples(asked)
        return [self._item(row, before, asked.seed) for row in _read(self.rows, asked)[: asked.limit]]

    def _examples(self, asked: Asked) -> str:
        if not self.shots or self.examples is None or self.solved is None:
            return ""
        rows = _read(self.examples, asked)
        if self.shots > len(rows):
            raise TaskDataError(
                f"{self.name} has {len(rows)} training rows, {self.shots} examples were asked for"
            )
        drawn = random.Random(asked.seed).sample(rows, self.shots)
        return "".join(self.solved(row) + "\n\n" for row in drawn)

    def _item(self, row: Row, before: str, seed: int) -> Item:
        references = tuple(self.references(row))
        if not references:
            raise TaskDataError(f"{row.where}: it has no reference to score by")
        return Item(before + self.prompt(row), references, row.where, seed)

    def prepare(self, items: Sequence[Item], subject: Subject) -> Prepared:
        """Prompts in ids, cut where they leave no room. Raises TaskDataError where none may be cut, or no room is."""
        room = subject.max_seq_len - self.max_new_tokens
        if room < 2:
            raise TaskDataError(
                f"{self.name} generates {self.max_new_tokens} tokens, the model takes {subject.max_seq_len} with the "
                "prompt; set max_new_tokens lower, or use a model with a longer context"
            )
        # A space at the prompt's end would keep the answer's first word from its usual token.
        whole = [subject.encode(i.prompt.rstrip(" ")) or [subject.first_id] for i in items]
        for item, ids in zip(items, whole, strict=True):
            if self.too_long == "error" and len(ids) > room:
                raise TaskDataError(
                    f"{item.where}: a prompt of {len(ids)} tokens where there is room for {room}; set too_long=left "
                    "or middle to cut it, or fewer shots"
                )
        prompts = [cut(ids, room, self.too_long) for ids in whole]
        return Prepared(tuple(items), prompts, sum(len(ids) > room for ids in whole))

    def run(self, prepared: Prepared, subject: Subject, *, rows: int | None = None) -> Ran:
        """Every item's text and scores: {generated, extracted, references, n_tokens, scores}."""
        from fabric.evaluate.decoding import ROWS, Drawing, continuations

        tokenizer = subject.trained.tokenizer
        found = continuations(
            subject.model,
            prepared.prompts,
            self.max_new_tokens,
            partial(has_ended, tokenizer, self.stops),
            Drawing(self.temperature, self.top_p, prepared.items[0].seed if prepared.items else 0),
            rows=rows or ROWS,
            precision=subject.precision,
        )
        texts = [text_of(tokenizer, ids, self.stops) for ids in found]
        outcomes = [
            {**self.outcome(text, item.references), "n_tokens": len(ids)}
            for text, item, ids in zip(texts, prepared.items, found, strict=True)
        ]
        n, where = prepared.n_cut, "middle" if self.too_long == "middle" else "beginning"
        return Ran(outcomes, (f"{n} prompts lost their {where}: the model takes no more",) if n else ())

    def outcome(self, text: str, references: Sequence[Any]) -> dict[str, Any]:
        """What a text is worth."""
        extracted = {name: take(text) for name, take in self.filters.items()}
        asked = {n: m for n, m in self.metrics.items() if m.among is None or m.among(references)}
        scores = {name: m.score(extracted[m.filter], references) for name, m in asked.items()}
        return {
            "generated": text,
            "extracted": extracted,
            "references": list(references),
            "scores": scores,
        }

    @property
    def measures(self) -> dict[str, Measure]:
        return {name: _measure(name, metric) for name, metric in self.metrics.items()} | dict(self.whole)

    def measures_of(self, outcomes: Sequence[Outcome]) -> dict[str, Measure]:
        """Those that some outcome was asked."""
        return {
            name: measure
            for name, measure in self.measures.items()
            if name not in self.metrics or any(name in o["scores"] for o in outcomes)
        }


@dataclass(frozen=True)
class Item:
    """One prompt, ready to be continued; `where` is where its row was written."""

    prompt: str
    references: tuple[Any, ...]
    where: str
    seed: int


@dataclass(frozen=True)
class Prepared:
    """Items, the ids of their prompts, and how many of these were cut."""

    items: tuple[Item, ...]
    prompts: list[list[int]]
    n_cut: int


def _read(source: Source, asked: Asked) -> Sequence[Row]:
    return read_table(source, asked.folder) if isinstance(source, Table) else source(asked)


def cut(ids: Sequence[int], room: int, how: str) -> list[int]:
    """At most `room` ids: the last ones, or ("middle") the first and last room // 2, LongBench's way."""
    if len(ids) <= room:
        return list(ids)
    half = room // 2
    return [*ids[:half], *ids[-half:]] if how == "middle" else list(ids[-room:])


def has_ended(tokenizer: Any, stops: Sequence[str], new: Sequence[int]) -> bool:
    """Whether the last of the new ids ends the text."""
    if new[-1] == tokenizer.eos_id:
        return True
    tail = tokenizer.decode(list(new[-max(UNSEEN, *map(len, stops)) :])) if stops else ""
    return any(stop in tail for stop in stops)


def text_of(tokenizer: Any, new: Sequence[int], stops: Sequence[str]) -> str:
    """The text of new ids, up to the end of text and the first stop string."""
    n = new.index(tokenizer.eos_id) if tokenizer.eos_id in new else len(new)
    text = str(tokenizer.decode(list(new[:n])))
    # An empty one ends a text at once, as the harness has it, and takes nothing from it.
    return text[: min((text.index(s) for s in stops if s and s in text), default=len(text))]


def _measure(name: str, metric: Metric) -> Measure:
    def value(outcome: Outcome) -> float:
        return float(outcome["scores"].get(name, 0.0))

    measure = Share(lambda o: value(o) == 1) if metric.is_share else Mean(value)
    return measure if metric.among is None else Among(measure, lambda o: name in o["scores"])
