"""Marker memory: a few marked facts far apart in filler, among pairs that look like facts; then questions."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from fabric.data.examples.base import UNASKED, GeneratedExamples, distinct, row_keys
from fabric.data.examples.symbols import (
    ANS,
    FIRST_KEY,
    FIRST_VALUE,
    MARK,
    N_IDS,
    N_KEYS,
    N_VALUES,
    QRY,
    facts_of,
    filler,
)


class MarkerMemoryConfig(GeneratedExamples):
    """Facts `MARK k v` in filler, their starts at least `separation` apart, then `QRY k ANS` and the value is asked.

    Distractors are pairs `k v` without the mark, of keys that are in no fact. Keys asked for differ.
    """

    kind: Literal["marker_memory"]
    n_markers: int = Field(ge=1, le=N_KEYS)
    separation: int = Field(default=3, ge=3)
    n_distractors: int = Field(default=0, ge=0, le=N_KEYS)
    n_queries: int = Field(default=1, ge=1, le=N_KEYS)

    @model_validator(mode="after")
    def _enough_keys(self) -> MarkerMemoryConfig:
        if self.n_markers + self.n_distractors > N_KEYS:
            raise ValueError(
                f"n_markers={self.n_markers} and n_distractors={self.n_distractors} need a key each; there are {N_KEYS}"
            )
        if self.n_queries > self.n_markers:
            raise ValueError(
                f"n_queries={self.n_queries} is above n_markers={self.n_markers}; ask for each at most once"
            )
        return self

    @property
    def n_ids(self) -> int:
        return N_IDS

    def n_asked(self, seq_len: int) -> float:
        return self.n_queries

    def chance(self) -> float:
        return 1 / N_VALUES

    def check(self, seq_len: int) -> None:
        n, asked = self.n_markers, 4 * self.n_queries - 1
        least = asked + max(3 + (n - 1) * self.separation, 4 * n + 3 * self.n_distractors + 1)
        if seq_len < least:
            raise ValueError(
                f"seq_len={seq_len}: facts, distractors and questions need {least} places; use a longer seq_len, "
                "or fewer of them"
            )

    def draw(
        self, random: np.random.Generator, n: int, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        F, Q = self.n_markers, self.n_queries
        length = seq_len - (4 * Q - 1)
        keys_NK = FIRST_KEY + distinct(random, n, F + self.n_distractors, N_KEYS)
        values_NK = FIRST_VALUE + random.integers(0, N_VALUES, keys_NK.shape)
        slack = length - 3 - (F - 1) * self.separation
        starts_NF = np.sort(random.integers(0, slack + 1, (n, F)), axis=1) + self.separation * np.arange(F)
        ids_NL = filler(random, n, length)
        np.put_along_axis(ids_NL, starts_NF, MARK, axis=1)
        for offset, words_NK in ((1, keys_NK), (2, values_NK)):
            np.put_along_axis(ids_NL, starts_NF + offset, words_NK[:, :F], axis=1)
        free_NL = np.ones((n, length), bool)
        for offset in range(3):
            np.put_along_axis(free_NL, starts_NF + offset, False, axis=1)
        for i in range(F, F + self.n_distractors):
            two_NL = free_NL[:, :-1] & free_NL[:, 1:]
            at_N1 = np.argmax(np.where(two_NL, random.random(two_NL.shape), -1.0), axis=1)[:, None]
            for offset, words_NK in enumerate((keys_NK, values_NK)):
                np.put_along_axis(ids_NL, at_N1 + offset, words_NK[:, i : i + 1], axis=1)
                np.put_along_axis(free_NL, at_N1 + offset, False, axis=1)
        asked_NQ = distinct(random, n, Q, F)
        words_NQ4 = np.empty((n, Q, 4), np.int64)
        words_NQ4[..., 0], words_NQ4[..., 2] = QRY, ANS
        words_NQ4[..., 1] = np.take_along_axis(keys_NK, asked_NQ, axis=1)
        words_NQ4[..., 3] = np.take_along_axis(values_NK, asked_NQ, axis=1)
        ids_NT = np.concatenate((ids_NL, words_NQ4.reshape(n, -1)[:, :-1]), axis=1)
        targets_NT = np.full((n, seq_len), UNASKED, np.int64)
        targets_NT[:, length + 2 :: 4] = words_NQ4[..., 3]
        return ids_NT, targets_NT, row_keys(ids_NT)

    def solve(self, ids_NT: np.ndarray) -> np.ndarray:
        answers_NT = np.zeros_like(ids_NT)
        answers_NT[:, 1:] = np.take_along_axis(facts_of(ids_NT), np.maximum(ids_NT[:, :-1], 0), axis=1)
        return answers_NT

    def query_only(self, ids_NT: np.ndarray) -> np.ndarray:
        blanked = ids_NT.copy()
        blanked[:, : ids_NT.shape[1] - (4 * self.n_queries - 1)] = 0
        return blanked
