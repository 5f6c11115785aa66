"""Multi-query associative recall: pairs of key and value, then some of the keys again, each to be answered.

Arora et al., "Zoology" (arXiv 2312.04927), §4 and appendix; hyper-parameters and layout as in their published
generator. A row of N = `seq_len` ids is k1 v1 … kn vn, then (N - 2n) / 2 slots of two; n slots, drawn without
replacement with p(i) ~ i^(power_a - 1), hold the keys, each at its slot's first place, where its value is asked.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from fabric.data.examples.base import UNASKED, GeneratedExamples, distinct, row_keys
from fabric.job.units import Real


class MQARConfig(GeneratedExamples):
    """Multi-query associative recall (arXiv 2312.04927); the field's test of in-context recall.

    Ids: 0 filler, then keys below `n_ids` / 2, and values from there on. `random_non_queries`: what is no query is
    filled with any id (harder), else with 0.
    """

    kind: Literal["mqar"]
    n_pairs: int = Field(ge=1, le=1 << 16)
    vocab_size: int = Field(default=8192, ge=4, le=1 << 24)
    power_a: Real = Field(default=0.01, gt=0)
    random_non_queries: bool = True

    @model_validator(mode="after")
    def _enough_ids(self) -> MQARConfig:
        least = 2 * (self.n_pairs + 1)
        if self.vocab_size % 2 or self.vocab_size < least:
            raise ValueError(
                f"vocab_size={self.vocab_size}: half of the ids are values, and {self.n_pairs} pairs need as many "
                f"keys beside the filler; use an even number from {least} on"
            )
        return self

    @property
    def n_ids(self) -> int:
        return self.vocab_size

    def n_asked(self, seq_len: int) -> float:
        return self.n_pairs

    def chance(self) -> float:
        return 2 / self.vocab_size

    def check(self, seq_len: int) -> None:
        if seq_len % 2 or seq_len < 4 * self.n_pairs:
            raise ValueError(
                f"seq_len={seq_len} with n_pairs={self.n_pairs}: pairs take two places each and so do questions; "
                f"use an even seq_len from {4 * self.n_pairs} on, or fewer pairs"
            )

    def draw(
        self, random: np.random.Generator, n: int, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        half, pairs = self.vocab_size // 2, self.n_pairs
        keys_NP = 1 + distinct(random, n, pairs, half - 1)
        values_NP = half + distinct(random, n, pairs, half)
        n_slots = (seq_len - 2 * pairs) // 2
        # Gumbel's top n: as drawing one slot after the other, without replacement.
        log_p_S = (self.power_a - 1) * np.log(np.arange(1, n_slots + 1))
        slots_NP = np.argsort(-(log_p_S + random.gumbel(size=(n, n_slots))), axis=1)[:, :pairs]
        ids_NT, targets_NT = placed(keys_NP, values_NP, slots_NP, seq_len)
        if self.random_non_queries:
            ids_NT = np.where(ids_NT == 0, random.integers(0, self.vocab_size, ids_NT.shape), ids_NT)
        return ids_NT, targets_NT, row_keys(ids_NT)

    def solve(self, ids_NT: np.ndarray) -> np.ndarray:
        keys_NP, values_NP = self._context(ids_NT)
        same_NTP = ids_NT[:, :, None] == keys_NP[:, None, :]
        return np.where(same_NTP, values_NP[:, None, :], 0).sum(-1)

    def query_only(self, ids_NT: np.ndarray) -> np.ndarray:
        blanked = ids_NT.copy()
        blanked[:, : 2 * self.n_pairs] = 0
        return blanked

    def _context(self, ids_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        context = ids_NT[:, : 2 * self.n_pairs]
        return context[:, 0::2], context[:, 1::2]


def placed(
    keys_NP: np.ndarray, values_NP: np.ndarray, slots_NP: np.ndarray, seq_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """ids_NT and targets_NT of pairs asked for at slots (places `2 P + 2 slot`); 0 where nothing stands."""
    n, pairs = keys_NP.shape
    ids_NT, targets_NT = np.zeros((n, seq_len), np.int64), np.full((n, seq_len), UNASKED, np.int64)
    ids_NT[:, 0 : 2 * pairs : 2], ids_NT[:, 1 : 2 * pairs : 2] = keys_NP, values_NP
    at_NP = 2 * pairs + 2 * slots_NP
    np.put_along_axis(ids_NT, at_NP, keys_NP, axis=1)
    np.put_along_axis(targets_NT, at_NP, values_NP, axis=1)
    return ids_NT, targets_NT
