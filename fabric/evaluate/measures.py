"""Metrics as functions of outcomes: each gives a score of one target, and the paired difference of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np

from fabric.evaluate import jackknife, scores
from fabric.evaluate.scores import Difference, Score
from fabric.evaluate.task import Outcome

Better = Literal["higher", "lower"] | None
T = TypeVar("T")


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
    """The mean of one number an item; `chance`: what a guesser gets of it, (number, probability) each."""

    value: Callable[[Outcome], float]
    better: Better = "higher"
    chance: Callable[[Outcome], Sequence[tuple[float, float]]] | None = None

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        found = scores.ratio([self.value(o) for o in outcomes], [1.0] * len(outcomes))
        return found if self.chance is None else _beside_guesses(found, [self.chance(o) for o in outcomes])

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        ones = [1.0] * len(a)
        return scores.paired_ratio(([self.value(o) for o in a], ones), ([self.value(o) for o in b], ones))


def _beside_guesses(found: Score, guesses: Sequence[Sequence[tuple[float, float]]]) -> Score:
    """With the mean of items that are guessed one by one, and the normal interval of it by their variances."""
    each = [np.asarray(g, dtype=float).T for g in guesses]
    means = np.array([value @ p for value, p in each])
    variances = np.array([(value - mean) ** 2 @ p for (value, p), mean in zip(each, means, strict=True)])
    half = NormalDist().inv_cdf((1 + scores.LEVEL) / 2) * float(np.sqrt(variances.sum())) / len(each)
    chance = float(means.mean())
    return replace(found, chance=chance, chance_low=chance - half, chance_high=chance + half)


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
class LeaveOneOut:
    """A share that counts different things: its value of all outcomes, and of all but one each (`jackknife`)."""

    metric: Callable[[Sequence[Outcome]], tuple[float, np.ndarray]]
    better: Better = "higher"

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        return jackknife.jackknifed(*self.metric(outcomes), least=0.0, most=1.0)

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        if len(a) != len(b):
            raise ValueError(
                f"{len(a)} and {len(b)} outcomes: a paired comparison needs the same items of both"
            )
        (value_a, without_a), (value_b, without_b) = self.metric(a), self.metric(b)
        return jackknife.jackknifed_difference(value_b - value_a, without_b - without_a, most=1.0)


@dataclass(frozen=True)
class Whole:
    """Any function of all outcomes, with a bootstrap over items."""

    metric: Callable[[Sequence[Outcome]], float]
    better: Better = "higher"

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        return scores.bootstrapped(outcomes, self.metric)

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        return scores.paired(a, b, self.metric)


@dataclass(frozen=True)
class WholeOf(Generic[T]):
    """Any function of what was made of all outcomes once, and of how often each of them counts.

    `Whole` would make it anew in every draw of its bootstrap, which takes minutes where items are ten thousands.
    """

    prepare: Callable[[Sequence[Outcome]], T]
    metric: Callable[[T, np.ndarray], float]
    better: Better = "higher"

    def score(self, outcomes: Sequence[Outcome]) -> Score:
        n = len(outcomes)
        if not n:
            raise ValueError("a metric of no items; give at least one")
        prepared = self.prepare(outcomes)
        value = self.metric(prepared, np.ones(n, dtype=np.int64))
        if n == 1:
            return Score(value, None, None, n)
        low, high = scores.percentiles(np.array([self.metric(prepared, counts_N) for counts_N in _drawn(n)]))
        return Score(value, low, high, n)

    def difference(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
        n = len(a)
        if n != len(b) or not n:
            raise ValueError(
                f"{n} and {len(b)} outcomes: a paired comparison needs the same items of both, one at least"
            )
        before, after = self.prepare(a), self.prepare(b)

        def value(counts_N: np.ndarray) -> float:
            return self.metric(after, counts_N) - self.metric(before, counts_N)

        drawn = np.array([value(counts_N) for counts_N in _drawn(n)])
        return scores.difference_of(value(np.ones(n, dtype=np.int64)), drawn, n)


def _drawn(n: int) -> Iterator[np.ndarray]:
    """How often each of n items is in a draw of the bootstrap: `scores`' own draws."""
    rng = np.random.default_rng(scores.DRAWS_SEED)
    for _ in range(scores.DRAWS):
        yield np.bincount(rng.integers(0, n, n), minlength=n)
