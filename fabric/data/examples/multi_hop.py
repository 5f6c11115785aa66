"""Multi-hop questions: the answer needs several facts, added up or followed one to the next."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from fabric.data.examples.base import PADDING, UNASKED, GeneratedExamples, distinct, row_keys
from fabric.data.examples.symbols import (
    ANS,
    FIRST_KEY,
    FIRST_NUMBER,
    MARK,
    N_IDS,
    N_KEYS,
    PRIME,
    QRY,
    facts_of,
)


class MultiHopConfig(GeneratedExamples):
    """Questions over `n_hops` facts `MARK k v`, in random order among as many others as asked for.

    `question` sum: values are numbers, `QRY k1 .. kh ANS` asks for their sum modulo 97, and `n_others` further facts
    distract. chain: values are keys, `QRY k ANS` asks where h steps lead, and `n_others` further chains of that length
    distract; with one hop it is plain retrieval.
    """

    kind: Literal["multi_hop"]
    n_hops: int = Field(ge=1, le=32)
    n_others: int = Field(default=3, ge=1, le=N_KEYS)
    question: Literal["sum", "chain"] = "sum"

    @model_validator(mode="after")
    def _enough_keys(self) -> MultiHopConfig:
        if self._n_keys > N_KEYS:
            raise ValueError(
                f"n_hops={self.n_hops} and n_others={self.n_others} need {self._n_keys} keys, there are {N_KEYS}; ask "
                "for fewer"
            )
        return self

    @property
    def _n_chains(self) -> int:
        return 1 + self.n_others

    @property
    def _n_keys(self) -> int:
        return self._n_chains * (self.n_hops + 1) if self.question == "chain" else self._n_facts

    @property
    def _n_facts(self) -> int:
        return self._n_chains * self.n_hops if self.question == "chain" else self.n_hops + self.n_others

    @property
    def _asked_size(self) -> int:
        return 2 + (self.n_hops if self.question == "sum" else 1)

    @property
    def n_ids(self) -> int:
        return N_IDS

    def n_asked(self, seq_len: int) -> float:
        return 1

    def chance(self) -> float:
        """Of a chain: for who guesses among the ends of all."""
        return 1 / PRIME if self.question == "sum" else 1 / self._n_chains

    def check(self, seq_len: int) -> None:
        least = 3 * self._n_facts + self._asked_size
        if seq_len < least:
            raise ValueError(
                f"seq_len={seq_len}: {self._n_facts} facts and the question take {least} places; use a seq_len from "
                "there on, or fewer hops or others"
            )

    def draw(
        self, random: np.random.Generator, n: int, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        F, h = self._n_facts, self.n_hops
        keys_NK = FIRST_KEY + distinct(random, n, self._n_keys, N_KEYS)
        if self.question == "sum":
            from_NF, to_NF = keys_NK, FIRST_NUMBER + random.integers(0, PRIME, (n, F))
            asked_NA = from_NF[:, :h]
            answer_N = FIRST_NUMBER + (to_NF[:, :h] - FIRST_NUMBER).sum(axis=1) % PRIME
        else:
            chains_NCK = keys_NK.reshape(n, self._n_chains, h + 1)
            from_NF, to_NF = chains_NCK[..., :-1].reshape(n, F), chains_NCK[..., 1:].reshape(n, F)
            asked_NA, answer_N = chains_NCK[:, 0, :1], chains_NCK[:, 0, -1]
        order_NF = distinct(random, n, F, F)
        facts_NF3 = np.stack((np.full_like(from_NF, MARK), from_NF, to_NF), axis=2)
        facts_NF3 = np.take_along_axis(facts_NF3, order_NF[..., None], axis=1)
        ids_NT = np.full((n, seq_len), PADDING, np.int64)
        targets_NT = np.full((n, seq_len), UNASKED, np.int64)
        end = 3 * F + self._asked_size
        ids_NT[:, : 3 * F] = facts_NF3.reshape(n, -1)
        ids_NT[:, 3 * F], ids_NT[:, 3 * F + 1 : end - 1], ids_NT[:, end - 1] = QRY, asked_NA, ANS
        targets_NT[:, end - 1] = answer_N
        return ids_NT, targets_NT, row_keys(ids_NT)

    def solve(self, ids_NT: np.ndarray) -> np.ndarray:
        said, end = facts_of(ids_NT), 3 * self._n_facts + self._asked_size
        asked_NA = ids_NT[:, 3 * self._n_facts + 1 : end - 1]
        answers_NT = np.zeros_like(ids_NT)
        if self.question == "sum":
            numbers_NA = np.take_along_axis(said, asked_NA, axis=1) - FIRST_NUMBER
            answers_NT[:, end - 1] = FIRST_NUMBER + numbers_NA.sum(axis=1) % PRIME
            return answers_NT
        at_N1 = asked_NA
        for _ in range(self.n_hops):
            at_N1 = np.take_along_axis(said, at_N1, axis=1)
        answers_NT[:, end - 1] = at_N1[:, 0]
        return answers_NT

    def query_only(self, ids_NT: np.ndarray) -> np.ndarray:
        blanked = ids_NT.copy()
        blanked[:, : 3 * self._n_facts] = 0
        return blanked
