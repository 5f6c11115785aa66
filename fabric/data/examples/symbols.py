"""The ids that tasks of facts and questions share, in ranges that do not overlap."""

from __future__ import annotations

import numpy as np

SEP, MARK, QRY, ANS, RULE, INVALID = 2, 3, 4, 5, 6, 8
PRIME = 97
FIRST_NUMBER = 16  # numbers modulo PRIME
FIRST_KEY, N_KEYS = FIRST_NUMBER + PRIME, 64
FIRST_VALUE, N_VALUES = FIRST_KEY + N_KEYS, 64
FIRST_FILLER, N_FILLERS = FIRST_VALUE + N_VALUES, 256
N_IDS = FIRST_FILLER + N_FILLERS


def filler(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Ids that mean nothing."""
    return random.integers(FIRST_FILLER, N_IDS, shape)


def facts_of(ids_NT: np.ndarray) -> np.ndarray:
    """int64 [N, N_IDS]: what each row's facts `MARK k v` say of every id k; 0 where they say nothing."""
    rows, places = np.nonzero(ids_NT == MARK)
    said = np.zeros((len(ids_NT), N_IDS), np.int64)
    said[rows, ids_NT[rows, places + 1]] = ids_NT[rows, places + 2]
    return said
