"""What a score over items is worth: its interval, the level of guessing, and paired differences of two targets.

An item's outcome is what one metric's formula takes of it: right or wrong for accuracy, (label, guess) for F1 and the
like. A proportion has Wilson's interval (1927), every other metric the percentiles of a bootstrap over items (Efron
1979). Two targets are compared on the same items: McNemar's exact test (1947) for right and wrong, a bootstrap of the
paired difference for the rest. Nothing here is random: the bootstrap's draws are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy import stats

LEVEL = 0.95
DRAWS, DRAWS_SEED = 2000, 20_261_123
T = TypeVar("T")
Metric = Callable[[Sequence[T]], float]


@dataclass(frozen=True)
class Score:
    """A metric over `n` items with its 95 % interval, None where one item or none says nothing about a spread.

    `chance` is what guessing is expected to get, with the interval that it stays in 95 times of 100 at this `n`; None
    where guessing has no level of its own (perplexity).
    """

    value: float
    low: float | None
    high: float | None
    n: int
    chance: float | None = None
    chance_low: float | None = None
    chance_high: float | None = None

    @property
    def is_chance(self) -> bool:
        """Whether a guesser gets such a score too."""
        if self.chance_low is None or self.chance_high is None:
            return False
        return self.chance_low <= self.value <= self.chance_high


@dataclass(frozen=True)
class Difference:
    """B minus A on the same items, its 95 % interval, and the two-sided p of no difference."""

    value: float
    low: float
    high: float
    p: float
    n: int


def share(right: Sequence[bool], chances: Sequence[float] | None = None) -> Score:
    """The share of items that are right. `chances`: each one's probability of being guessed.

    Raises ValueError without items, and where the two differ in length.
    """
    n, k = len(right), int(sum(map(bool, right)))
    if not n:
        raise ValueError("a share of no items; give at least one")
    if chances is not None and len(chances) != n:
        raise ValueError(f"{n} items have {len(chances)} chances; give one each")
    interval = stats.binomtest(k, n).proportion_ci(LEVEL, method="wilson")
    low, high = (float(interval.low), float(interval.high)) if n > 1 else (None, None)
    if chances is None:
        return Score(k / n, low, high, n)
    guessed_low, guessed_high = _guessed(chances)
    return Score(k / n, low, high, n, float(np.mean(chances)), guessed_low / n, guessed_high / n)


def mean_of_shares(groups: Sequence[Sequence[bool]], chance: float) -> Score:
    """The mean of each group's share of right items, every group with the same weight; `chance` of an item.

    The interval is normal, by the shares' own variances. Raises ValueError where a group has no items.
    """
    if not groups or not all(map(len, groups)):
        raise ValueError("a mean of shares needs groups, and items in each of them")
    shares = [sum(map(bool, g)) / len(g) for g in groups]
    value, n = sum(shares) / len(shares), sum(map(len, groups))
    z = float(stats.norm.ppf((1 + LEVEL) / 2)) / len(groups)
    half = z * math.sqrt(sum(p * (1 - p) / len(g) for p, g in zip(shares, groups, strict=True)))
    spread = z * math.sqrt(sum(chance * (1 - chance) / len(g) for g in groups))
    low, high = max(0.0, value - half), min(1.0, value + half)
    return Score(value, low, high, n, chance, chance - spread, chance + spread)


def mean_of_differences(groups: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> Difference:
    """The difference of two means of shares; of each group the same items' right ones of A and of B.

    Interval and p are normal, by the variance of the items' differences within groups. Raises ValueError where items
    differ in number, or a group has none.
    """
    if not groups or any(_same_number(a, b) < 1 for a, b in groups):
        raise ValueError("a mean of differences needs groups")
    each = [np.asarray(b, dtype=float) - np.asarray(a, dtype=float) for a, b in groups]
    value, n = float(np.mean([d.mean() for d in each])), sum(map(len, each))
    spread = math.sqrt(sum(d.var() / len(d) for d in each)) / len(each)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * spread
    p = float(2 * stats.norm.sf(abs(value) / spread)) if spread else float(value == 0)
    return Difference(value, value - half, value + half, p, n)


def ratio(
    above: Sequence[float], below: Sequence[float], of: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> Score:
    """A function `of` (elementwise) of the ratio of two sums over items, with a bootstrap's percentiles.

    Raises ValueError without items.
    """
    pairs_N2 = np.column_stack([above, below]).astype(float)
    if not len(pairs_N2):
        raise ValueError("a metric of no items; give at least one")
    total = pairs_N2.sum(0)
    with _infinities():
        value = float(of(total[0] / total[1]))
        if len(pairs_N2) == 1:
            return Score(value, None, None, 1)
        drawn_D2 = _sums_drawn(pairs_N2)
        low, high = percentiles(of(drawn_D2[:, 0] / drawn_D2[:, 1]))
    return Score(value, low, high, len(pairs_N2))


def paired_ratio(
    a: tuple[Sequence[float], Sequence[float]],
    b: tuple[Sequence[float], Sequence[float]],
    of: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Difference:
    """The difference of two such functions, of (above, below), over the same items, by a bootstrap of pairs."""
    _same_number(a[0], b[0])
    sums_N4 = np.column_stack([*a, *b]).astype(float)

    def difference(x: np.ndarray) -> np.ndarray:
        return of(x[..., 2] / x[..., 3]) - of(x[..., 0] / x[..., 1])

    with _infinities():
        return difference_of(
            float(difference(sums_N4.sum(0))), difference(_sums_drawn(sums_N4)), len(sums_N4)
        )


def bootstrapped(outcomes: Sequence[T], metric: Metric[T]) -> Score:
    """Any metric of all outcomes, with the percentiles of it over items drawn anew. Raises ValueError without items."""
    n = len(outcomes)
    if not n:
        raise ValueError("a metric of no items; give at least one")
    value = float(metric(outcomes))
    if n == 1:
        return Score(value, None, None, n)
    low, high = percentiles(_drawn(n, lambda rows: metric([outcomes[i] for i in rows])))
    return Score(value, low, high, n)


def of_confusion(counts_KK: np.ndarray, metric: Callable[[np.ndarray], np.ndarray]) -> Score:
    """A metric of a table of (answer, guess) counts, with the percentiles of it over items drawn anew.

    `metric` takes tables [..., K, K] and gives one value each. Raises ValueError for an empty table.
    """
    n = int(counts_KK.sum())
    if not n:
        raise ValueError("a metric of no items; give at least one")
    value = float(metric(counts_KK))
    if n == 1:
        return Score(value, None, None, n)
    drawn = np.random.default_rng(DRAWS_SEED).multinomial(n, counts_KK.ravel() / n, DRAWS)
    low, high = percentiles(metric(drawn.reshape(DRAWS, *counts_KK.shape)))
    return Score(value, low, high, n)


def confusion(pairs: Sequence[tuple[int, int]], n_classes: int) -> np.ndarray:
    """How often each answer got each guess, [answers, guesses], of (answer, guess) from 0 on."""
    counts_KK = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(counts_KK, tuple(np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T), 1)
    return counts_KK


def paired_confusion(
    a: Sequence[tuple[int, int]],
    b: Sequence[tuple[int, int]],
    metric: Callable[[np.ndarray], np.ndarray],
    n_classes: int,
) -> Difference:
    """The difference of a metric of two tables over the same items, by a bootstrap of pairs.

    Raises ValueError where the items differ in number or in their answers, or there are none.
    """
    n = _same_number(a, b)
    if [x[0] for x in a] != [x[0] for x in b]:
        raise ValueError("the same items have other answers in A and B; measure both on the same data")
    size = n_classes
    cells = np.array([(x[0], x[1], y[1]) for x, y in zip(a, b, strict=True)]) @ (size**2, size, 1)
    counts = np.bincount(cells, minlength=size**3)

    def difference(table: np.ndarray) -> np.ndarray:
        cube = table.reshape(*table.shape[:-1], size, size, size)
        return metric(cube.sum(-2)) - metric(cube.sum(-1))

    drawn = np.random.default_rng(DRAWS_SEED).multinomial(n, counts / n, DRAWS)
    return difference_of(float(difference(counts)), difference(drawn), n)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> Difference:
    """The difference of two shares over the same items: an exact test of the items that one of the two alone gets.

    The interval is Newcombe's for paired proportions (1998, method 10). Raises ValueError where the items differ in
    number, or there are none.
    """
    n = _same_number(a, b)
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    p = float(stats.binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    both = sum(bool(x) and bool(y) for x, y in zip(a, b, strict=True))
    low, high = _newcombe(both, only_a, only_b, n)
    return Difference((only_b - only_a) / n, low, high, p, n)


def paired(a: Sequence[T], b: Sequence[T], metric: Metric[T]) -> Difference:
    """The difference of any metric over the same items, by a bootstrap of pairs; p is its share beyond zero, doubled.

    Raises ValueError where the items differ in number, or there are none.
    """
    n = _same_number(a, b)
    value = float(metric(b)) - float(metric(a))
    found = _drawn(n, lambda rows: metric([b[i] for i in rows]) - metric([a[i] for i in rows]))
    return difference_of(value, found, n)


def difference_of(value: float, drawn: np.ndarray, n: int) -> Difference:
    """Of the values of a bootstrap; p is their share beyond zero, doubled."""
    low, high = percentiles(drawn)
    beyond = min(float(np.mean(drawn <= 0)), float(np.mean(drawn >= 0)))
    return Difference(value, low, high, min(1.0, 2 * max(beyond, 1 / (len(drawn) + 1))), n)


def _sums_drawn(values_NK: np.ndarray) -> np.ndarray:
    """Sums over N items drawn anew, [DRAWS, K]."""
    rng, n = np.random.default_rng(DRAWS_SEED), len(values_NK)
    at_once = max(1, 2**22 // n)
    drawn = [
        rng.multinomial(n, np.full(n, 1 / n), min(at_once, DRAWS - done)) @ values_NK
        for done in range(0, DRAWS, at_once)
    ]
    return np.concatenate(drawn)


def _infinities() -> np.errstate:
    """Infinite values are values: the perplexity a word of a text without white space."""
    return np.errstate(over="ignore", divide="ignore", invalid="ignore")


def _guessed(chances: Sequence[float]) -> tuple[int, int]:
    """The number of items a guesser gets stays between these, 95 times of 100: a sum of binomials, one a chance."""
    counts, n_each = np.unique(np.asarray(chances, dtype=float), return_counts=True)
    mass = np.ones(1)
    for p, n in zip(counts, n_each, strict=True):
        mass = np.convolve(mass, stats.binom.pmf(np.arange(n + 1), n, p))
    below, tail = np.cumsum(mass), (1 - LEVEL) / 2
    return int(np.searchsorted(below, tail)), int(np.searchsorted(below, 1 - tail))


def _same_number(a: Sequence[Any], b: Sequence[Any]) -> int:
    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} and {len(b)} outcomes: a paired comparison needs the same items of both")
    return len(a)


def _drawn(n: int, metric: Callable[[np.ndarray], float]) -> np.ndarray:
    rng = np.random.default_rng(DRAWS_SEED)
    return np.array([metric(rng.integers(0, n, n)) for _ in range(DRAWS)], dtype=float)


def percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    return float(low), float(high)


def _newcombe(both: int, only_a: int, only_b: int, n: int) -> tuple[float, float]:
    """The interval of share(b) - share(a): Wilson's of each, joined by their correlation."""
    k_a, k_b = both + only_a, both + only_b
    shares, wilson = (
        (k_a / n, k_b / n),
        [stats.binomtest(k, n).proportion_ci(LEVEL, "wilson") for k in (k_a, k_b)],
    )
    (p_a, p_b), (a, b) = shares, wilson
    neither = n - both - only_a - only_b
    product = k_a * (n - k_a) * k_b * (n - k_b)
    excess = both * neither - only_a * only_b
    phi = 0.0 if not product else (excess - n / 2 if excess > n / 2 else min(excess, 0)) / math.sqrt(product)
    down = math.sqrt((p_b - b.low) ** 2 - 2 * phi * (p_b - b.low) * (a.high - p_a) + (a.high - p_a) ** 2)
    up = math.sqrt((b.high - p_b) ** 2 - 2 * phi * (b.high - p_b) * (p_a - a.low) + (p_a - a.low) ** 2)
    return p_b - p_a - down, p_b - p_a + up
