"""Metrics of classes, as functions of the table of (answer, guess) counts, [..., K, K]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

Counted = Callable[[np.ndarray], np.ndarray]


def matthews(counts: np.ndarray) -> np.ndarray:
    """The correlation of answers and guesses (Gorodkin 2004, for any number of classes); 0 for a constant guess."""
    n, right = counts.sum((-2, -1)), counts.trace(axis1=-2, axis2=-1)
    answers, guesses = counts.sum(-1), counts.sum(-2)
    covariance = right * n - (answers * guesses).sum(-1)
    spread = np.sqrt((n**2 - (answers**2).sum(-1)).astype(float) * (n**2 - (guesses**2).sum(-1)))
    return np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0)


def _share(right: np.ndarray, of: np.ndarray) -> np.ndarray:
    """0 where there is nothing to be a share of."""
    return np.divide(right, of, out=np.zeros(np.shape(right)), where=of > 0)


def precision(counts: np.ndarray) -> np.ndarray:
    """Of every class, [..., K]: the share of guesses that are right."""
    return _share(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-2))


def recall(counts: np.ndarray) -> np.ndarray:
    """Of every class, [..., K]: the share of answers that are guessed."""
    return _share(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1))


def f1(counts: np.ndarray) -> np.ndarray:
    """Of every class, [..., K]; 0 where it is neither an answer nor a guess."""
    return _share(2 * np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1) + counts.sum(-2))


METRICS: dict[str, Counted] = {
    "matthews": matthews,
    "f1": lambda counts: _of_class(f1, 1, counts),
    "f1_macro": lambda counts: _mean(f1, counts),
}
_EACH = {"precision": precision, "recall": recall, "f1": f1}


def of_classes(names: Sequence[str]) -> dict[str, Counted]:
    """Matthews' correlation; precision, recall and F1 of every class and their means; of two classes those of the
    second under their plain names."""
    found: dict[str, Counted] = {"matthews": matthews}
    for metric, each in _EACH.items():
        if len(names) == 2:
            found[metric] = partial(_of_class, each, 1)
        found[f"{metric}_macro"] = partial(_mean, each)
        found |= {f"{metric}_{name}": partial(_of_class, each, i) for i, name in enumerate(names)}
    return found


def _of_class(each: Counted, i: int, counts: np.ndarray) -> np.ndarray:
    return each(counts)[..., i]


def _mean(each: Counted, counts: np.ndarray) -> np.ndarray:
    return each(counts).mean(-1)
