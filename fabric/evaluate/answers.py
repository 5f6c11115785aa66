"""Answers as texts: SQuAD's exact match and F1 (Rajpurkar et al. 2016, arXiv 1606.05250; v2: arXiv 1806.03822).

Both are the best over the references; a question without an answer has the one reference "".
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, single spaces."""
    bare = text.lower().translate(PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", bare).split())


def exact(guess: str, references: Sequence[str]) -> float:
    """1.0 where the guess is one of the references once both are normalised. Raises ValueError without references."""
    _some(references)
    return float(any(normalised(guess) == normalised(r) for r in references))


def f1(guess: str, references: Sequence[str]) -> float:
    """The best F1 of the words that guess and a reference share, each as often as in both; of an empty one 1.0 where
    both are empty, else 0.0. Raises ValueError without references."""
    _some(references)
    return max(_f1(normalised(guess).split(), normalised(r).split()) for r in references)


def _f1(guess: list[str], reference: list[str]) -> float:
    if not guess or not reference:
        return float(guess == reference)
    shared = sum((Counter(guess) & Counter(reference)).values())
    return 2 * shared / (len(guess) + len(reference))


def _some(references: Sequence[str]) -> None:
    if not references:
        raise ValueError('an answer is judged by at least one reference; of no answer it is ""')
