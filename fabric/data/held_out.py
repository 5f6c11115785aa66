"""Which documents of a stream are held out: decided for each by itself, so that no pass over the text is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fabric.data.corpus import SPLITS
from fabric.data.splits import TEST, TRAIN, VALIDATION, keyed


@dataclass(frozen=True)
class HoldOut:
    """The shares that are cut from the training text, 0 for a split that was published.

    A document's split is a function of the hash of its text: equal texts are always together, wherever they are.
    """

    validation: float
    test: float
    seed: int

    def splits(self, digests: np.ndarray, known: np.ndarray) -> np.ndarray:
        """A split for each document, uint8; `known` are the sorted digests of the published held-out texts that are
        kept, whose copies in the training text belong to no split.
        """
        place = keyed(digests, self.seed).astype(np.float64) / 2.0**64
        found = np.full(len(digests), TRAIN, np.uint8)
        found[place < self.test + self.validation] = VALIDATION
        found[place < self.test] = TEST
        if len(known):
            nearest = np.minimum(np.searchsorted(known, digests), len(known) - 1)
            found[(known[nearest] == digests) & (found == TRAIN)] = len(SPLITS)
        return found
