"""Pattern reasoning: a number sequence to be continued; the rules of validation and test are never trained on."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from fabric.data.examples.base import PADDING, UNASKED, GeneratedExamples, row_keys
from fabric.data.examples.symbols import ANS, FIRST_NUMBER, PRIME, RULE, SEP

# By Fermat, x^(P-2); 0 has none.
_INVERSE = np.array([0, *(pow(a, -1, PRIME) for a in range(1, PRIME))])


class PatternReasoningConfig(GeneratedExamples):
    """Sequences modulo 97: `n_examples` of one rule, `RULE x0 .. SEP` each, then `RULE x0 .. ANS`, to be continued.

    `rule`: arithmetic x + d; geometric x r; fibonacci, the sum of the last two; affine c x + b. Splits differ in the
    rule's parameters (d, r, (c, b); of fibonacci, which has none, in the first two numbers): only who has learned the
    rule goes on with parameters never seen.
    """

    kind: Literal["pattern_reasoning"]
    rule: Literal["arithmetic", "geometric", "fibonacci", "affine"] = "arithmetic"
    n_shown: int = Field(default=4, ge=2, le=1024)
    n_predict: int = Field(default=1, ge=1, le=1024)
    n_examples: int = Field(default=0, ge=0, le=256)

    @model_validator(mode="after")
    def _rule_is_shown(self) -> PatternReasoningConfig:
        if self.rule == "affine" and self.n_shown < 3:
            raise ValueError(
                f"n_shown={self.n_shown}: an affine rule is known from 3 numbers on; show 3 or more"
            )
        return self

    @property
    def n_ids(self) -> int:
        return FIRST_NUMBER + PRIME

    @property
    def _before(self) -> int:
        """Places before the question."""
        return self.n_examples * (self.n_shown + 2)

    @property
    def _length(self) -> int:
        return self._before + self.n_shown + 1 + self.n_predict

    def chance(self) -> float:
        return 1 / (PRIME - 1)  # a geometric sequence is never 0

    def check(self, seq_len: int) -> None:
        if seq_len < self._length:
            raise ValueError(
                f"seq_len={seq_len}: examples, question and answer take {self._length} places; use a seq_len from "
                "there on, or fewer numbers"
            )

    def draw(
        self, random: np.random.Generator, n: int, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        S, E = self.n_shown, self.n_examples
        parameters_N2 = np.stack((random.integers(2, PRIME, n), random.integers(1, PRIME, n)), axis=1)
        starts_NE2 = np.stack(
            (random.integers(1, PRIME, (n, E + 1)), random.integers(0, PRIME, (n, E + 1))), axis=2
        )
        numbers_NEX = FIRST_NUMBER + self._sequences(starts_NE2, parameters_N2, S + self.n_predict)
        ids_NT = np.full((n, seq_len), PADDING, np.int64)
        targets_NT = np.full((n, seq_len), UNASKED, np.int64)
        shown_NEX = np.full((n, E, S + 2), RULE)
        shown_NEX[..., 1:-1], shown_NEX[..., -1] = numbers_NEX[:, :E, :S], SEP
        ids_NT[:, : self._before] = shown_NEX.reshape(n, -1)
        at = self._before + 1
        ids_NT[:, at - 1], ids_NT[:, at : at + S], ids_NT[:, at + S] = RULE, numbers_NEX[:, -1, :S], ANS
        ids_NT[:, at + S + 1 : self._length] = numbers_NEX[:, -1, S:-1]
        targets_NT[:, at + S : self._length] = numbers_NEX[:, -1, S:]
        of = {"arithmetic": slice(1, 2), "geometric": slice(0, 1), "affine": slice(0, 2)}
        held_out = starts_NE2[:, -1] if self.rule == "fibonacci" else parameters_N2[:, of[self.rule]]
        return ids_NT, targets_NT, row_keys(held_out)

    def _sequences(self, starts_NE2: np.ndarray, parameters_N2: np.ndarray, length: int) -> np.ndarray:
        """[N, E, length]: sequences of each row's rule from several starts; r and c are parameter 0, d and b 1."""
        c_N1, b_N1 = parameters_N2[:, :1], parameters_N2[:, 1:]
        first = starts_NE2[..., 0]
        if self.rule == "affine":  # not where it stands still, c x + b = x
            still_N1 = b_N1 * _INVERSE[(1 - c_N1) % PRIME] % PRIME
            first = (still_N1 + first) % PRIME
        found = [first]
        for i in range(1, length):
            last = found[-1]
            if self.rule == "fibonacci":
                new = starts_NE2[..., 1] if i == 1 else last + found[-2]
            else:
                new = {"arithmetic": last + b_N1, "geometric": last * c_N1, "affine": last * c_N1 + b_N1}[
                    self.rule
                ]
            found.append(new % PRIME)
        return np.stack(found, axis=-1)

    def solve(self, ids_NT: np.ndarray) -> np.ndarray:
        S, at = self.n_shown, self._before + 1
        shown_NS = ids_NT[:, at : at + S] - FIRST_NUMBER
        a, b = shown_NS[:, 0], shown_NS[:, 1]
        c = np.ones_like(a)
        if self.rule == "geometric":
            c = b * _INVERSE[a] % PRIME
        elif self.rule == "affine":
            c = (shown_NS[:, 2] - b) * _INVERSE[(b - a) % PRIME] % PRIME
        known_N2 = np.stack((c, (b - c * a) % PRIME), axis=1)
        last_NE2 = shown_NS[:, None, -2:]
        answers_NT = np.zeros_like(ids_NT)
        if self.rule == "fibonacci":
            found = self._sequences(last_NE2, known_N2, self.n_predict + 2)[:, 0, 2:]
        else:
            found = self._from(shown_NS[:, -1], known_N2)
        answers_NT[:, at + S : self._length] = FIRST_NUMBER + found
        return answers_NT

    def _from(self, last_N: np.ndarray, known_N2: np.ndarray) -> np.ndarray:
        """The next `n_predict` numbers of c x + b, which all rules but fibonacci are."""
        found = []
        for _ in range(self.n_predict):
            last_N = (last_N * known_N2[:, 0] + known_N2[:, 1]) % PRIME
            found.append(last_N)
        return np.stack(found, axis=1)

    def query_only(self, ids_NT: np.ndarray) -> np.ndarray:
        """Without any number: the next would tell of the one after."""
        return np.where(ids_NT >= FIRST_NUMBER, 0, ids_NT)
