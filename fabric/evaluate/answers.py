"""Answers in words against references: exact match and token F1, as SQuAD's official scripts define them.

Rajpurkar et al. 2016 (arXiv 1606.05250) and 2018 (v2, arXiv 1806.03822): the best over the references. An empty
reference stands for a question without an answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, then without articles; one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact(guess: str, references: Sequence[str]) -> float:
    """1 where the guess is one of the references after normalisation, else 0. Raises ValueError without any."""
    _check(references)
    return float(normalised(guess) in map(normalised, references))


def f1(guess: str, references: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of words, with their counts; 0 to 1. Raises ValueError without any
    reference.

    Where guess or reference has no words it is 1 if both have none, else 0 (v2).
    """
    _check(references)
    return max(_f1(normalised(guess).split(), normalised(r).split()) for r in references)


def _f1(guess: list[str], reference: list[str]) -> float:
    if not guess or not reference:
        return float(guess == reference)
    common = sum((Counter(guess) & Counter(reference)).values())
    return 2 * common / (len(guess) + len(reference))


def _check(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise ValueError(f"references = {references!r}: give a list of texts, [''] where there is no answer")
