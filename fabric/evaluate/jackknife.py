"""Intervals of what counts different things, by leaving one item out at a time.

A bootstrap draws items twice, and an item that is there twice adds nothing new: its samples hold 63 % of the items, so
distinct n-grams are fewer in all of them and the percentiles lie below the value itself. The delete-one jackknife asks
for samples of n - 1 different items instead. Its variance is never too small in expectation, for any function that
does not depend on the items' order (Efron and Stein 1981, Annals of Statistics 9, 586-596), so the intervals hold what
they promise or more: of simulated texts they were up to half again as wide as they need be. They are of the expected
value at this number of items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from fabric.evaluate.scores import LEVEL, Difference, Score


def jackknifed(
    value: float, without_N: np.ndarray, least: float = -math.inf, most: float = math.inf
) -> Score:
    """`value` of all items and of all but one each, with Student's interval, within `least` and `most`.

    Raises ValueError without items.
    """
    n = len(without_N)
    if not n:
        raise ValueError("a metric of no items; give at least one")
    if n == 1:
        return Score(value, None, None, 1)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * _error(without_N)
    return Score(value, max(least, value - half), min(most, value + half), n)


def jackknifed_difference(value: float, without_N: np.ndarray, most: float = math.inf) -> Difference:
    """A difference of two targets, of all items and of all but one each, with Student's interval and p.

    It cannot be beyond `most` either way; one item says no more than that. Raises ValueError without items.
    """
    n = len(without_N)
    if not n:
        raise ValueError("a difference over no items; give at least one")
    if n == 1:
        return Difference(value, -most, most, 1.0, 1)
    error = _error(without_N)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(value) / error, n - 1)) if error else float(value == 0)
    return Difference(value, max(-most, value - half), min(most, value + half), p, n)


def _error(without_N: np.ndarray) -> float:
    n = len(without_N)
    return math.sqrt((n - 1) / n * float(((without_N - without_N.mean()) ** 2).sum()))


def distinct(texts: Sequence[Sequence[int]], n: int) -> tuple[float, np.ndarray]:
    """distinct-n = different n-grams / n-grams (Li et al. 2016, arXiv 1510.03055) of all texts, and of all but each.

    What a text takes with it are the n-grams that no other text has. 0 where there are no n-grams.
    """
    n_grams_N = np.array([max(0, len(text) - n + 1) for text in texts])
    owner_G = np.repeat(np.arange(len(texts)), n_grams_N)
    gram_G = np.zeros(len(owner_G), np.int64)
    for offset in range(n):
        words = [text[offset : offset + size] for text, size in zip(texts, n_grams_N, strict=True)]
        _, word_G = np.unique(np.concatenate([np.asarray(w, np.int64) for w in words]), return_inverse=True)
        # Numbers without gaps, so that the next product stays small.
        _, gram_G = np.unique(gram_G * (len(word_G) + 1) + word_G, return_inverse=True)
    pairs = np.unique(gram_G * len(texts) + owner_G)
    n_owners = np.bincount(pairs // len(texts))
    alone = pairs[n_owners[pairs // len(texts)] == 1] % len(texts)
    of_all, total = len(n_owners), int(n_grams_N.sum())
    kept_N, left_N = of_all - np.bincount(alone, minlength=len(texts)), total - n_grams_N
    without_N = np.divide(kept_N, left_N, out=np.zeros(len(texts)), where=left_N > 0)
    return (of_all / total if total else 0.0), without_N


def mean_where(values: Sequence[float | None]) -> tuple[float, np.ndarray]:
    """The mean of the values there are, of all and of all but one each; 0 where there are none."""
    there_N = np.array([v is not None for v in values])
    value_N = np.array([v or 0.0 for v in values])
    total, n, n_N = value_N.sum(), int(there_N.sum()), there_N.sum() - there_N
    without_N = np.divide(total - value_N, n_N, out=np.zeros(len(value_N)), where=n_N > 0)
    return (float(total / n) if n else 0.0), without_N
