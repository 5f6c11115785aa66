"""Metrics as functions of outcomes: each gives a score of one target, and the paired difference of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from fabric.evaluate import scores
from fabric.evaluate.scores import Difference, Score
from fabric.evaluate.task import Outcome

Better = Literal["higher", "lower"] | None


class Measure(Protocol):
    """A metric of a task's outcomes. `better`: the direction, None where neither is."""

    @property
    def better(self) -> Better: ...

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        """The metric with its interval. Raises ValueError without outcomes."""

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        """B minus A over the same items. Raises ValueError where they differ in number."""


@dataclass(frozen=True)
class Share:
    """The share of items that are right; `chance`: an item's probability of being guessed right."""

    is_right: Callable[[Outcome], bool]
    chance: Callable[[Outcome], float] | None = None
    better: Better = "higher"

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        chances = None if self.chance is None else [self.chance(o) for o in outcomes]
        return scores.share([self.is_right(o) for o in outcomes], chances)

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        return scores.mcnemar([self.is_right(o) for o in a], [self.is_right(o) for o in b])


@dataclass(frozen=True)
class MeanOfShares:
    """The mean over groups of the share of right items, each group with the same weight."""

    is_right: Callable[[Outcome], bool]
    group: Callable[[Outcome], str]
    chance: float
    better: Better = "higher"

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        return scores.mean_of_shares(list(self._groups(outcomes).values()), self.chance)

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        before, after = self._groups(a), self._groups(b)
        return scores.mean_of_differences([(before[name], after[name]) for name in before])

    def _groups(self, outcomes: Sequence[Outcome]) -> dict[str, list[bool]]:
        groups: dict[str, list[bool]] = {}
        for outcome in outcomes:
            groups.setdefault(self.group(outcome), []).append(self.is_right(outcome))
        return groups


@dataclass(frozen=True)
class WholeGroups:
    """The share of groups of which every item is right."""

    is_right: Callable[[Outcome], bool]
    group: Callable[[Outcome], str]
    better: Better = "higher"

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        return scores.share(self._all_right(outcomes))

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        return scores.mcnemar(self._all_right(a), self._all_right(b))

    def _all_right(self, outcomes: Sequence[Outcome]) -> list[bool]:
        found: dict[str, bool] = {}
        for outcome in outcomes:
            name = self.group(outcome)
            found[name] = found.get(name, True) and self.is_right(outcome)
        return list(found.values())


@dataclass(frozen=True)
class Among:
    """A metric of the outcomes that are of a group; what has none of them has no such metric."""

    measure: Measure
    is_of: Callable[[Outcome], bool]

    @property
    def better(self) -> Better:
        return self.measure.better

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        return self.measure.score([o for o in outcomes if self.is_of(o)])

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        return self.measure.difference([o for o in a if self.is_of(o)], [o for o in b if self.is_of(o)])


@dataclass(frozen=True)
class Mean:
    """The mean of one number an item."""

    value: Callable[[Outcome], float]
    better: Better = "higher"

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        return scores.ratio([self.value(o) for o in outcomes], [1.0] * len(outcomes))

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        ones = [1.0] * len(a)
        return scores.paired_ratio(([self.value(o) for o in a], ones), ([self.value(o) for o in b], ones))


@dataclass(frozen=True)
class Ratio:
    """A function of a ratio of two sums over items: perplexity is exp(sum of nats / number of tokens)."""

    above: Callable[[Outcome], float]
    below: Callable[[Outcome], float]
    of: Callable[[np.ndarray], np.ndarray] = np.asarray
    better: Better = "lower"

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        return scores.ratio(*self._sums(outcomes), self.of)

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        return scores.paired_ratio(self._sums(a), self._sums(b), self.of)

    def _sums(self, outcomes: Sequence[Outcome]) -> tuple[list[float], list[float]]:
        return [self.above(o) for o in outcomes], [self.below(o) for o in outcomes]


@dataclass(frozen=True)
class Confusion:
    """A metric of the table of (answer, guess) counts, [..., K, K]: of each item its two numbers from 0 on, and K."""

    metric: Callable[[np.ndarray], np.ndarray]
    pair: Callable[[Outcome], tuple[int, int]]
    n_classes: Callable[[Outcome], int]
    better: Better = "higher"

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        counts = scores.confusion([self.pair(o) for o in outcomes], self._n_classes(outcomes))
        return scores.of_confusion(counts, self.metric)

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        sides = [self.pair(o) for o in a], [self.pair(o) for o in b]
        return scores.paired_confusion(*sides, self.metric, self._n_classes(a))

    def _n_classes(self, outcomes: Sequence[Outcome]) -> int:
        return max(map(self.n_classes, outcomes), default=0)


@dataclass(frozen=True)
class Whole:
    """Any function of all outcomes, with a bootstrap over items."""

    metric: Callable[[Sequence[Outcome]], float]
    better: Better = "higher"

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        return scores.bootstrapped(outcomes, self.metric)

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        return scores.paired(a, b, self.metric)
