"""Associative retrieval: pairs of key and value, one after the other, then one key whose value is asked.

Rodkin et al., "Associative Recurrent Memory Transformer" (arXiv 2407.04841), §4: tasks Remember and Rewrite.
Shapes: N rows, P pairs, K symbols of a key, V of a value, L of a pair, T positions.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from fabric.data.examples.base import PADDING, UNASKED, GeneratedExamples, distinct, row_keys

SYMBOLS = 16
SEP, GEN, EOS = SYMBOLS, SYMBOLS + 1, SYMBOLS + 2


class AssociativeRetrievalConfig(GeneratedExamples):
    """Associative retrieval (arXiv 2407.04841): `key SEP value EOS` n times, then `key GEN`, and `value EOS` is asked.

    `task` remember: keys differ; rewrite: they repeat, and the latest value counts. Keys and values are written in
    `key_size` and `value_size` symbols of 16. As in the paper's code the loss is that of what the last value_size + 2
    tokens GEN, value and EOS are followed by: of the value and EOS, nothing follows EOS. The paper's score, all of them
    right, is `val_exact`, which guessing gets to 16^-value_size; `val_accuracy` has EOS in it, which is never hard.
    """

    kind: Literal["associative_retrieval"]
    n_pairs: int = Field(ge=1, le=4096)
    task: Literal["remember", "rewrite"] = "remember"
    key_size: int = Field(default=1, ge=1, le=4)
    value_size: int = Field(default=1, ge=1, le=64)

    REVISION: ClassVar[int] = 2

    @model_validator(mode="after")
    def _enough_keys(self) -> AssociativeRetrievalConfig:
        if self.task == "remember" and self.n_pairs > SYMBOLS**self.key_size:
            raise ValueError(
                f"n_pairs={self.n_pairs}: there are {SYMBOLS**self.key_size} keys of key_size={self.key_size}; "
                "use fewer pairs, a larger key_size, or task: rewrite"
            )
        return self

    @property
    def n_ids(self) -> int:
        return EOS + 1

    @property
    def _pair_size(self) -> int:
        return self.key_size + self.value_size + 2

    @property
    def _length(self) -> int:
        return self._answer_at + self.value_size + 1

    @property
    def _answer_at(self) -> int:
        """The place of GEN, where the value's first symbol is asked."""
        return self.n_pairs * self._pair_size + self.key_size

    def n_asked(self, seq_len: int) -> float:
        return self.value_size + 1  # EOS

    def chance(self) -> float:
        return (self.value_size / SYMBOLS + 1) / (self.value_size + 1)  # EOS is known

    def check(self, seq_len: int) -> None:
        if seq_len < self._length:
            raise ValueError(
                f"seq_len={seq_len}: {self.n_pairs} pairs and the question take {self._length} places; use a seq_len "
                "from there on, or fewer pairs"
            )

    def draw(
        self, random: np.random.Generator, n: int, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        P, ks, vs = self.n_pairs, self.key_size, self.value_size
        if self.task == "remember":
            codes_NP = distinct(random, n, P, SYMBOLS**ks)
        else:
            codes_NP = random.integers(0, SYMBOLS**ks, (n, P))
        keys_NPK = codes_NP[..., None] // SYMBOLS ** np.arange(ks)[::-1] % SYMBOLS
        pairs_NPL = np.concatenate(
            (
                keys_NPK,
                np.full((n, P, 1), SEP),
                random.integers(0, SYMBOLS, (n, P, vs)),
                np.full((n, P, 1), EOS),
            ),
            axis=2,
        )
        rows_N, asked_N = np.arange(n), random.integers(0, P, n)
        last_N = P - 1 - np.argmax((codes_NP == codes_NP[rows_N, asked_N][:, None])[:, ::-1], axis=1)
        answer_NV = pairs_NPL[rows_N, last_N, ks + 1 :]  # EOS included
        ids_NT = np.full((n, seq_len), PADDING, np.int64)
        targets_NT = np.full((n, seq_len), UNASKED, np.int64)
        at, end = self._answer_at, self._length
        ids_NT[:, : at - ks] = pairs_NPL.reshape(n, -1)
        ids_NT[:, at - ks : at] = keys_NPK[rows_N, asked_N]
        ids_NT[:, at] = GEN
        ids_NT[:, at + 1 : end] = answer_NV[:, :-1]
        targets_NT[:, at:end] = answer_NV
        return ids_NT, targets_NT, row_keys(ids_NT)

    def solve(self, ids_NT: np.ndarray) -> np.ndarray:
        P, ks, at = self.n_pairs, self.key_size, self._answer_at
        pairs_NPL = ids_NT[:, : at - ks].reshape(len(ids_NT), P, -1)
        same_NP = (pairs_NPL[:, :, :ks] == ids_NT[:, None, at - ks : at]).all(axis=2)
        last_N = P - 1 - np.argmax(same_NP[:, ::-1], axis=1)
        answers_NT = np.zeros_like(ids_NT)
        answers_NT[:, at : self._length] = pairs_NPL[np.arange(len(ids_NT)), last_N, ks + 1 :]
        return answers_NT

    def query_only(self, ids_NT: np.ndarray) -> np.ndarray:
        blanked = ids_NT.copy()
        blanked[:, : self.n_pairs * self._pair_size] = 0
        return blanked
