"""Option scoring: of a prompt's possible continuations, the likeliest one is the answer.

An option's score is the mean log-probability of its tokens (MeZO's, arXiv 2305.17333, and others' templates), or their
sum where options are whole sentences (BLiMP). Calibrated, the sum less that of the option after a prompt without
content (surface form competition: Holtzman et al. 2021, arXiv 2104.08315). The first of equal scores wins.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fabric.evaluate.likelihood import ROWS, Request, fitted, likelihoods
from fabric.evaluate.rows import Row, Table, TaskDataError, read_table
from fabric.evaluate.scores import Score, mean_of_shares, of_confusion, share

if TYPE_CHECKING:
    from fabric.evaluate.subject import Subject

SHOTS_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class OptionTask:
    """A task in a few lines: where its rows are, and what prompt, options and answer are in one.

    `about`: what it asks. `content_free`: the prompt of calibration. `group`: what scores are averaged over, each with
    the same weight (BLiMP's paradigms). `metrics`: "accuracy", or of `METRICS`; the first is the headline.
    """

    name: str
    about: str
    rows: Table
    prompt: Callable[[Row], str]
    options: Callable[[Row], Sequence[str]]
    answer: Callable[[Row], int]
    shots: Table | None = None
    content_free: Callable[[Row], str] | None = None
    group: Callable[[Row], str] | None = None
    score: Literal["mean", "sum"] = "mean"
    metrics: tuple[str, ...] = ("accuracy",)


@dataclass(frozen=True)
class Item:
    """One question, ready to be scored; `where` is where its row was written."""

    prompt: str
    options: tuple[str, ...]
    answer: int
    where: str
    group: str = ""
    content_free: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What a target made of an item: the option it finds likeliest, every option's score, and the right one."""

    guess: int
    answer: int
    scores: tuple[float, ...]
    group: str

    @property
    def is_right(self) -> bool:
        return self.guess == self.answer


@dataclass(frozen=True)
class OptionResult:
    """Scores by metric, the outcomes they are of, by item, and how many contexts lost their beginning."""

    scores: dict[str, Score]
    outcomes: tuple[Outcome, ...]
    n_cut: int


def load_items(
    task: OptionTask,
    folder: Path | None,
    *,
    n_shots: int = 0,
    limit: int | None = None,
    calibrated: bool = False,
    seed: int = 0,
) -> list[Item]:
    """The items of a task, with `n_shots` solved examples in front of each prompt, the same for all.

    Examples are drawn by `seed` from the training rows. Raises TaskDataError where data is missing or not as it should
    be, ValueError for calibration of a task that has no prompt without content, and for examples it has no rows for.
    """
    if calibrated and task.content_free is None:
        raise ValueError(
            f"{task.name} has no prompt without content to calibrate with; leave calibration out"
        )
    before = _examples(task, folder, n_shots, seed)
    rows = read_table(task.rows, folder)[:limit]
    return [_item(task, row, before, calibrated) for row in rows]


def _examples(task: OptionTask, folder: Path | None, n_shots: int, seed: int) -> str:
    if not n_shots:
        return ""
    if task.shots is None:
        raise ValueError(f"{task.name} has no training rows, so no examples can be shown; score it with 0")
    rows = read_table(task.shots, folder)
    if n_shots > len(rows):
        raise ValueError(f"{task.name} has {len(rows)} training rows, {n_shots} examples were asked for")
    solved = [_item(task, row, "", False) for row in random.Random(seed).sample(rows, n_shots)]
    return "".join((i.prompt + i.options[i.answer]).strip() + SHOTS_SEPARATOR for i in solved)


def _item(task: OptionTask, row: Row, before: str, calibrated: bool) -> Item:
    options, answer = tuple(task.options(row)), task.answer(row)
    if not 0 <= answer < len(options):
        raise TaskDataError(f"{row.where}: the answer {answer} is none of {len(options)} options")
    if empty := [i for i, option in enumerate(options) if not option]:
        raise TaskDataError(f"{row.where}: option {empty[0]} is empty")
    free = task.content_free(row) if calibrated and task.content_free else None
    group = task.group(row) if task.group else ""
    return Item((before + task.prompt(row)).lstrip(), options, answer, row.where, group, free)


def score_items(
    task: OptionTask, items: Sequence[Item], subject: Subject, *, rows: int = ROWS
) -> OptionResult:
    """Every item's guess, and the task's metrics of them.

    A context that is too long loses its beginning. Raises ValueError for an option that does not fit the model.
    """
    requests = [_request(subject, i.prompt, option, i.where) for i in items for option in i.options]
    fitting = [fitted(r, subject.max_seq_len) for r in requests]
    n_cut = sum(len(a.context) < len(b.context) for a, b in zip(fitting, requests, strict=True))
    free = {
        (i.content_free, option): _request(subject, i.content_free, option, i.where)
        for i in items
        if i.content_free is not None
        for option in i.options
    }
    found = likelihoods(subject.model, [*fitting, *free.values()], rows=rows, precision=subject.precision)
    nats = iter([f.nats for f in found])
    scored = [(r, next(nats)) for r in fitting]
    calibration = dict(zip(free, nats, strict=True))
    outcomes, each = [], iter(scored)
    for item in items:
        scores = []
        for option in item.options:
            request, summed = next(each)
            if item.content_free is not None:
                scores.append(summed - calibration[item.content_free, option])
            else:
                scores.append(summed / len(request.continuation) if task.score == "mean" else summed)
        guess = max(range(len(scores)), key=lambda i: (scores[i], -i))
        outcomes.append(Outcome(guess, item.answer, tuple(scores), item.group))
    return OptionResult(_scores(task, items, outcomes), tuple(outcomes), n_cut)


def _request(subject: Subject, prompt: str, option: str, where: str) -> Request:
    """The option's tokens are those that the whole text has more than its prompt alone."""
    if not prompt:
        return Request((subject.first_id,), tuple(subject.trained.tokenizer.encode(option)))
    # A space at the prompt's end begins the option's first token.
    whole, before = subject.encode(prompt + option), subject.encode(prompt.rstrip(" "))
    n = min(len(before), len(whole) - 1)
    if n < 1:
        raise TaskDataError(f"{where}: prompt {prompt!r} and option {option!r} are one token together")
    return Request(tuple(whole[:n]), tuple(whole[n:]))


def _scores(task: OptionTask, items: Sequence[Item], outcomes: Sequence[Outcome]) -> dict[str, Score]:
    chances = [1 / len(i.options) for i in items]
    found: dict[str, Score] = {}
    for name in task.metrics:
        if name != "accuracy":
            found[name] = of_confusion(_confusion(outcomes), METRICS[name])
        elif task.group is None:
            found[name] = share([o.is_right for o in outcomes], chances)
        else:
            groups: dict[str, list[bool]] = {}
            for outcome in outcomes:
                groups.setdefault(outcome.group, []).append(outcome.is_right)
            found[name] = mean_of_shares(list(groups.values()), sum(chances) / len(chances))
    return found


def _confusion(outcomes: Sequence[Outcome]) -> np.ndarray:
    """How often each answer got each guess, [answers, guesses]."""
    n_options = max(len(o.scores) for o in outcomes)
    counts_KK = np.zeros((n_options, n_options), dtype=np.int64)
    for outcome in outcomes:
        counts_KK[outcome.answer, outcome.guess] += 1
    return counts_KK


def _matthews(counts: np.ndarray) -> np.ndarray:
    """The correlation of answers and guesses (Gorodkin 2004, for any number of classes); 0 for a constant guess."""
    n, right = counts.sum((-2, -1)), counts.trace(axis1=-2, axis2=-1)
    answers, guesses = counts.sum(-1), counts.sum(-2)
    covariance = right * n - (answers * guesses).sum(-1)
    spread = np.sqrt((n**2 - (answers**2).sum(-1)).astype(float) * (n**2 - (guesses**2).sum(-1)))
    return np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0)


def _f1_each(counts: np.ndarray) -> np.ndarray:
    """F1 of every class; 0 where it is neither an answer nor a guess."""
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    either = (counts.sum(-1) + counts.sum(-2)).astype(float)
    return np.divide(2 * right, either, out=np.zeros_like(either), where=either > 0)


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "matthews": _matthews,
    "f1": lambda counts: _f1_each(counts)[..., 1],
    "f1_macro": lambda counts: _f1_each(counts).mean(-1),
}
