"""When to decline: the threshold over no-answer probabilities that is best in hindsight (SQuAD v2, arXiv 1806.03822).

A question is declined where its number is above the threshold, else the answer counts. Instead of probabilities any
numbers will do that grow with them. The official script takes questions one by one in the order of their numbers and
may so part equal ones, which no threshold does; here they stay together, so that every value is one that a threshold
gets. Where no two are equal, values and thresholds are the script's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fabric.evaluate import answers
from fabric.evaluate.measures import Measure, WholeOf
from fabric.evaluate.task import Outcome

Judge = Callable[[str, Sequence[str]], float]


class Best(NamedTuple):
    """The highest mean score, and the lowest of the thresholds that get it."""

    value: float
    threshold: float


def best_threshold(right: Sequence[float], na_probs: Sequence[float], has_answer: Sequence[bool]) -> Best:
    """The best mean of scores over all thresholds. `right`: each answer's score if it is given.

    The threshold that declines everything is 0.0, as in the script, or -inf where that would not. Raises ValueError
    without questions, where the three differ in length, or where a number is none.
    """
    swept = _Swept.of(right, na_probs, has_answer)
    at, value = swept.best(np.ones(len(right)))
    if at is not None:
        return Best(value, float(swept.numbers[at]))
    return Best(value, 0.0 if swept.numbers[0] > 0 else -math.inf)


def best_thresholds(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """`best_exact`, `best_exact_thresh`, `best_f1`, `best_f1_thresh` of outcomes with `margin` and `span`, the
    likeliest answer whether it was given or not; thresholds are margins. Raises ValueError without outcomes."""
    found: dict[str, float] = {}
    for name, judge in (("exact", answers.exact), ("f1", answers.f1)):
        best = best_threshold(*_columns(outcomes, judge))
        found |= {f"best_{name}": best.value, f"best_{name}_thresh": best.threshold}
    return found


def best_of_thresholds(judge: Judge) -> Measure:
    """The metric of such outcomes, the threshold chosen anew in every draw of the bootstrap."""
    return WholeOf(lambda os: _Swept.of(*_columns(os, judge)), lambda swept, counts: swept.best(counts)[1])


def _columns(outcomes: Sequence[Outcome], judge: Judge) -> tuple[list[float], list[float], list[bool]]:
    right = [judge(o["span"], o["references"]) for o in outcomes]
    margins = [math.inf if o["margin"] is None else float(o["margin"]) for o in outcomes]
    return right, margins, [any(o["references"]) for o in outcomes]


@dataclass(frozen=True)
class _Swept:
    """Questions in the order of their numbers: what giving each one's answer adds to declining it, and the
    places that a threshold may lie after."""

    order: np.ndarray
    numbers: np.ndarray
    gains: np.ndarray
    declined: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, right: Sequence[float], na_probs: Sequence[float], has_answer: Sequence[bool]) -> _Swept:
        if not len(right) == len(na_probs) == len(has_answer) or not len(right):
            raise ValueError(
                f"{len(right)} scores, {len(na_probs)} numbers and {len(has_answer)} questions; a threshold is chosen "
                "by one of each for every question"
            )
        numbers = np.asarray(na_probs, dtype=float)
        if np.isnan(numbers).any():
            raise ValueError(
                f"the no-answer number of question {int(np.isnan(numbers).argmax())} is not a number"
            )
        order = np.argsort(numbers, kind="stable")
        declined = 1.0 - np.asarray(has_answer, dtype=float)[order]
        numbers = numbers[order]
        gains = np.asarray(right, dtype=float)[order] - declined
        ends = np.flatnonzero(np.append(numbers[1:] != numbers[:-1], True))
        return cls(order, numbers, gains, declined, ends)

    def best(self, counts: np.ndarray) -> tuple[int | None, float]:
        """The last place of which the answer is given (None: of none), and the mean, each question as often."""
        weights = counts[self.order].astype(float)
        sums = np.cumsum(weights * self.gains)[self.ends]
        first = int(sums.argmax())
        # Not the product @: its threads wait for each other where cores are shared.
        total, n = float((weights * self.declined).sum()), float(weights.sum())
        gain = float(sums[first])
        return (int(self.ends[first]), (total + gain) / n) if gain > 0 else (None, total / n)
