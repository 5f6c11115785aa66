"""Long answers by the words they share with references: ROUGE-L (Lin 2004), and BLEU (Papineni et al. 2002).

ROUGE-L is `rouge_score`'s F-measure, without stemming, the best over the references. BLEU is `sacrebleu`'s of the whole
corpus (Post 2018, arXiv 1804.08771; 13a, exponential smoothing), from 0 to 100. Both are read when they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from fabric.evaluate.measures import Measure, WholeOf
from fabric.evaluate.task import Outcome


def check_installed() -> None:
    """Raise ValueError where a library is missing, with what to install."""
    _scorer()
    _bleu()


def rouge_l(guess: str, references: Sequence[str]) -> float:
    """The best F-measure over the references; of an empty answer 1.0 where a reference is empty, else 0.0.

    Raises ValueError without references.
    """
    if not references:
        raise ValueError('an answer is judged by at least one reference; of no answer it is ""')
    if not guess or not all(references):
        return float(guess in references)
    return max(float(_scorer().score(r, guess)["rougeL"].fmeasure) for r in references)


def bleu_of(name: str) -> Measure:
    """BLEU of what the filter of that name took, over the items that have an answer; 0 where there are none.

    A bootstrap draws items and adds their n-grams up, which is what the corpus' BLEU is made of.
    """

    def counts(outcomes: Sequence[Outcome]) -> np.ndarray:
        return np.array([_counted(o["extracted"][name], o["references"]) for o in outcomes])

    return WholeOf(counts, lambda counts_NK, times_N: _of_counts(times_N @ counts_NK))


def _counted(guess: str, references: Sequence[str]) -> list[int]:
    """Of orders 1 to 4 the n-grams found in a reference, then those that are there; lengths of guess and reference."""
    if not any(references):
        return [0] * 10
    found = _bleu().sentence_score(guess, list(references))
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


def _of_counts(sums_K: np.ndarray) -> float:
    *grams, guessed, referred = map(int, sums_K)
    found = _bleu().compute_bleu(grams[:4], grams[4:], guessed, referred, smooth_method="exp")
    return float(found.score)


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ValueError(_missing("ROUGE-L", "rouge-score")) from None
    return RougeScorer(["rougeL"])


@cache
def _bleu() -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise ValueError(_missing("BLEU", "sacrebleu")) from None
    return BLEU(
        effective_order=True
    )  # so that it does not warn of single sentences; their counts are the same


def _missing(metric: str, package: str) -> str:
    return f"{metric} needs {package}, which is not installed: pip install 'experiment-fabric[eval]'"
