"""Induction heads: what followed a marker when it stood in the text the one time before?

Olsson et al. (arXiv 2209.11895); this form by Dao et al., "Hungry Hungry Hippos" (arXiv 2212.14052), §3.1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fabric.data.examples.base import UNASKED, GeneratedExamples, row_keys


class InductionConfig(GeneratedExamples):
    """Induction heads (arXiv 2212.14052): random symbols with one marker among them, and the marker again at the end;
    the symbol after the first one is asked. Theirs: 16 symbols, texts of 256.
    """

    kind: Literal["induction"]
    n_symbols: int = Field(default=16, ge=2, le=1 << 20)

    @property
    def n_ids(self) -> int:
        return self.n_symbols + 1

    def n_asked(self, seq_len: int) -> float:
        return 1

    def chance(self) -> float:
        return 1 / self.n_symbols

    def check(self, seq_len: int) -> None:
        if seq_len < 3:
            raise ValueError(f"seq_len={seq_len}: a marker, a symbol and the marker again take 3 places")

    def draw(
        self, random: np.random.Generator, n: int, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows_N, at_N = np.arange(n), random.integers(0, seq_len - 2, n)
        ids_NT = random.integers(0, self.n_symbols, (n, seq_len))
        ids_NT[rows_N, at_N] = ids_NT[:, -1] = self.n_symbols
        targets_NT = np.full((n, seq_len), UNASKED, np.int64)
        targets_NT[:, -1] = ids_NT[rows_N, at_N + 1]
        return ids_NT, targets_NT, row_keys(ids_NT)

    def solve(self, ids_NT: np.ndarray) -> np.ndarray:
        at_N = np.argmax(ids_NT == self.n_symbols, axis=1)
        answers_NT = np.zeros_like(ids_NT)
        answers_NT[:, -1] = ids_NT[np.arange(len(ids_NT)), at_N + 1]
        return answers_NT

    def query_only(self, ids_NT: np.ndarray) -> np.ndarray:
        blanked = np.zeros_like(ids_NT)
        blanked[:, -1] = ids_NT[:, -1]
        return blanked
