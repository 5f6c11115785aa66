"""Copying: random symbols, a separator, and the same symbols again, forwards or backwards.

Graves et al., "Neural Turing Machines" (arXiv 1410.5401), §4.1; reversed as in Grefenstette et al. (arXiv 1506.02516).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fabric.data.examples.base import PADDING, UNASKED, GeneratedExamples, row_keys


class CopyConfig(GeneratedExamples):
    """Copying (arXiv 1410.5401): `length` symbols, a separator, then all of them again; the second half is asked."""

    kind: Literal["copy"]
    length: int = Field(ge=1, le=1 << 20)
    n_symbols: int = Field(default=16, ge=2, le=1 << 20)
    reverse: bool = False

    @property
    def n_ids(self) -> int:
        return self.n_symbols + 1

    def n_asked(self, seq_len: int) -> float:
        return self.length

    def chance(self) -> float:
        return 1 / self.n_symbols

    def check(self, seq_len: int) -> None:
        if seq_len < 2 * self.length:
            raise ValueError(
                f"seq_len={seq_len}: {self.length} symbols and their copy take {2 * self.length} places; use a seq_len "
                "from there on, or a smaller length"
            )

    def draw(
        self, random: np.random.Generator, n: int, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        L = self.length
        source_NL = random.integers(0, self.n_symbols, (n, L))
        copy_NL = source_NL[:, ::-1] if self.reverse else source_NL
        ids_NT = np.full((n, seq_len), PADDING, np.int64)
        targets_NT = np.full((n, seq_len), UNASKED, np.int64)
        ids_NT[:, :L], ids_NT[:, L], ids_NT[:, L + 1 : 2 * L] = source_NL, self.n_symbols, copy_NL[:, :-1]
        targets_NT[:, L : 2 * L] = copy_NL
        return ids_NT, targets_NT, row_keys(source_NL)

    def solve(self, ids_NT: np.ndarray) -> np.ndarray:
        L, answers_NT = self.length, np.zeros_like(ids_NT)
        answers_NT[:, L : 2 * L] = ids_NT[:, :L][:, :: -1 if self.reverse else 1]
        return answers_NT

    def query_only(self, ids_NT: np.ndarray) -> np.ndarray:
        blanked = ids_NT.copy()
        blanked[:, : self.length] = 0
        return blanked
