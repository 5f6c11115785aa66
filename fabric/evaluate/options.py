"""Option scoring: of a prompt's possible continuations, the likeliest one is the answer.

An option's score is the mean log-probability of its tokens (MeZO's, arXiv 2305.17333, and others' templates), or their
sum where options are whole sentences (BLiMP). Calibrated, the sum less that of the option after a prompt without
content (surface form competition: Holtzman et al. 2021, arXiv 2104.08315). The first of equal scores wins.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fabric.data.rows import Row, Table, TaskDataError, read_table
from fabric.evaluate.classes import METRICS
from fabric.evaluate.likelihood import ROWS, Request, fitted, likelihoods
from fabric.evaluate.measures import Confusion, Mean, MeanOfShares, Measure, Share, WholeGroups
from fabric.evaluate.task import Asked, Outcome, Ran, Task

if TYPE_CHECKING:
    from fabric.evaluate.subject import Subject

SHOTS_SEPARATOR = "\n\n"


@dataclass(frozen=True, kw_only=True)
class OptionTask(Task):
    """A task in a few lines: where its rows are, and what prompt, options and answer are in one.

    `answer`: the right option's number, or all of them where several are right. `content_free`: the prompt of
    calibration. `group`: what belongs together: `mean_of_groups` averages accuracy over groups, each with the same
    weight (BLiMP's paradigms). `worth`: what choosing each option is worth, from 0 to 1, where one may be right in
    part (ReCoRD). `metrics`: "accuracy", "exact" (groups that are all right), "f1" (the mean worth, where there is
    one), or of `METRICS`; the first is the headline. Settings: `shots` solved examples stand before each prompt, the
    same for all, drawn by the seed from the training rows; `calibrated`.
    """

    KIND: ClassVar[str] = "options"
    SETTINGS: ClassVar[tuple[str, ...]] = ("shots", "calibrated")

    rows: Table
    prompt: Callable[[Row], str]
    options: Callable[[Row], Sequence[str]]
    answer: Callable[[Row], int | Sequence[int]]
    examples: Table | None = None
    content_free: Callable[[Row], str] | None = None
    group: Callable[[Row], str] | None = None
    worth: Callable[[Row], Sequence[float]] | None = None
    mean_of_groups: bool = False
    score: Literal["mean", "sum"] = "mean"
    metrics: tuple[str, ...] = ("accuracy",)
    shots: Annotated[int, Field(ge=0)] = 0
    calibrated: bool = False

    def __post_init__(self) -> None:
        if self.calibrated and self.content_free is None:
            raise ValueError("it has no prompt without content to calibrate with; leave calibrated out")
        if self.shots and self.examples is None:
            raise ValueError("it has no training rows, so no examples can be shown; leave shots out")

    def load(self, asked: Asked) -> list[Item]:
        """Raises TaskDataError where data is missing or not as it should be, or too few for its examples."""
        before = self._examples(asked)
        return [_item(self, row, before) for row in read_table(self.rows, asked.folder)[: asked.limit]]

    def _examples(self, asked: Asked) -> str:
        if not self.shots or self.examples is None:
            return ""
        rows = read_table(self.examples, asked.folder)
        if self.shots > len(rows):
            raise TaskDataError(
                f"{self.name} has {len(rows)} training rows, {self.shots} examples were asked for"
            )
        solved = [_item(self, row, "") for row in random.Random(asked.seed).sample(rows, self.shots)]
        return "".join((i.prompt + i.options[i.answers[0]]).strip() + SHOTS_SEPARATOR for i in solved)

    def prepare(self, items: Sequence[Item], subject: Subject) -> Prepared:
        """A context that is too long loses its beginning; an option that is raises TaskDataError."""
        asked = {(i.prompt, o): i.where for i in items for o in i.options}
        free = {(i.content_free, o): i.where for i in items for o in i.options if i.content_free is not None}
        whole = {key: request_of(subject, *key, where) for key, where in {**free, **asked}.items()}
        texts = {key: fitted_of(r, subject, asked.get(key) or free[key]) for key, r in whole.items()}
        cut = {key for key, r in texts.items() if len(r.context) < len(whole[key].context)}
        n_cut = sum(any((i.prompt, o) in cut for o in i.options) for i in items)
        return Prepared(tuple(items), texts, n_cut)

    def run(self, prepared: Prepared, subject: Subject, *, rows: int = ROWS) -> Ran:
        """Every item's guess: {guess, answer, scores, group}, and what each option is worth where that is said."""
        found = likelihoods(
            subject.model, list(prepared.texts.values()), rows=rows, precision=subject.precision
        )
        nats = {key: likelihood.nats for key, likelihood in zip(prepared.texts, found, strict=True)}
        outcomes = []
        for item in prepared.items:
            scores = [self._score(item, o, nats, prepared.texts) for o in item.options]
            guess = max(range(len(scores)), key=lambda i: (scores[i], -i))
            answer = guess if guess in item.answers else item.answers[0]
            outcome = {"guess": guess, "answer": answer, "scores": scores, "group": item.group}
            outcomes.append(outcome if item.worth is None else {**outcome, "worth": list(item.worth)})
        n = prepared.n_cut
        return Ran(outcomes, (f"{n} contexts lost their beginning: the model takes no more",) if n else ())

    def _score(
        self,
        item: Item,
        option: str,
        nats: Mapping[tuple[str, str], float],
        texts: Mapping[tuple[str, str], Request],
    ) -> float:
        key = item.prompt, option
        if item.content_free is not None:
            return nats[key] - nats[item.content_free, option]
        return nats[key] / len(texts[key].continuation) if self.score == "mean" else nats[key]

    @property
    def measures(self) -> dict[str, Measure]:
        return {name: self._measure(name) for name in self.metrics}

    def _measure(self, name: str) -> Measure:
        def group(outcome: Outcome) -> str:
            return str(outcome["group"])

        if name == "exact":
            return WholeGroups(is_right, group)
        if name == "f1" and self.worth is not None:
            return Mean(lambda o: o["worth"][o["guess"]], chance=_any_option)
        if name != "accuracy":
            return of_pairs(name)
        if self.mean_of_groups:
            return MeanOfShares(is_right, group, 1 / 2)
        return Share(is_right, lambda o: 1 / len(o["scores"]))


@dataclass(frozen=True)
class Item:
    """One question, ready to be scored; `where` is where its row was written."""

    prompt: str
    options: tuple[str, ...]
    answers: tuple[int, ...]
    where: str
    group: str = ""
    content_free: str | None = None
    worth: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Prepared:
    """Items, the request of each (prompt, option) that is asked, and how many items' contexts were cut."""

    items: tuple[Item, ...]
    texts: dict[tuple[str, str], Request]
    n_cut: int


def is_right(outcome: Outcome) -> bool:
    """Whether the guess is the answer."""
    return bool(outcome["guess"] == outcome["answer"])


def of_pairs(name: str) -> Confusion:
    """A metric of `METRICS` over outcomes with an `answer`, a `guess` and the options' `scores`."""
    return Confusion(METRICS[name], lambda o: (o["answer"], o["guess"]), lambda o: len(o["scores"]))


def _any_option(outcome: Outcome) -> list[tuple[float, float]]:
    """What a guesser gets who takes every option as often."""
    return [(worth, 1 / len(outcome["worth"])) for worth in outcome["worth"]]


def _item(task: OptionTask, row: Row, before: str) -> Item:
    options, answer = tuple(task.options(row)), task.answer(row)
    answers = (answer,) if isinstance(answer, int) else tuple(answer)
    if not answers or not all(0 <= a < len(options) for a in answers):
        raise TaskDataError(f"{row.where}: the answer {answer} is none of {len(options)} options")
    if empty := [i for i, option in enumerate(options) if not option]:
        raise TaskDataError(f"{row.where}: option {empty[0]} is empty")
    free = task.content_free(row) if task.calibrated and task.content_free else None
    group = task.group(row) if task.group else ""
    worth = None if task.worth is None else tuple(task.worth(row))
    if worth is not None and (len(worth) != len(options) or not all(0 <= w <= 1 for w in worth)):
        raise TaskDataError(
            f"{row.where}: {len(options)} options are worth {worth}; give each a number in 0 … 1"
        )
    return Item((before + task.prompt(row)).lstrip(), options, answers, row.where, group, free, worth)


def request_of(subject: Subject, prompt: str, option: str, where: str) -> Request:
    """The option's tokens are those that the whole text has more than its prompt alone."""
    if not prompt:
        return Request((subject.first_id,), tuple(subject.trained.tokenizer.encode(option)))
    # A space at the prompt's end begins the option's first token.
    whole, before = subject.encode(prompt + option), subject.encode(prompt.rstrip(" "))
    n = min(len(before), len(whole) - 1)
    if n < 1:
        raise TaskDataError(f"{where}: prompt {prompt!r} and option {option!r} are one token together")
    return Request(tuple(whole[:n]), tuple(whole[n:]))


def fitted_of(request: Request, subject: Subject, where: str) -> Request:
    try:
        return fitted(request, subject.max_seq_len)
    except ValueError as error:
        raise TaskDataError(f"{where}: {error}") from None
