"""Pattern reasoning: a number sequence to be continued; the rules of validation and test are never trained on."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from fabric.data.examples.base import PADDING, UNASKED, GeneratedExamples
from fabric.data.examples.sequences import FAMILIES, Family, Interleaved, Periodic, Simple, corrupted
from fabric.data.examples.symbols import ANS, FIRST_NUMBER, INVALID, PRIME, RULE, SEP
from fabric.job.units import Real


class PatternReasoningConfig(GeneratedExamples):
    """Sequences modulo 97: `n_examples` of one rule, `RULE x0 .. SEP` each, then `RULE x0 .. ANS`, to be continued.

    `rule`: arithmetic x + d; geometric x r; fibonacci, the sum of the last two; affine c x + b; periodic, `period`
    numbers over and over; interleaved, two of `families` in turn. Splits differ in the rule's parameters (d, r, (c, b),
    the numbers of a period, both of interleaved ones; of fibonacci, which has none, in its cycle): only who has learned
    the rule goes on with parameters never seen.

    In a share of rows (`invalid_share`) one shown number of the question is replaced so that no sequence of that kind
    has all that are shown; INVALID is the answer then, once.
    """

    kind: Literal["pattern_reasoning"]
    rule: Literal[Simple, "periodic", "interleaved"] = "arithmetic"
    n_shown: int = Field(default=4, ge=2, le=1024)
    n_predict: int = Field(default=1, ge=1, le=1024)
    n_examples: int = Field(default=0, ge=0, le=256)
    period: int | None = Field(default=None, ge=2, le=256)
    families: tuple[Simple, Simple] | None = None
    invalid_share: Real = Field(default=0.2, ge=0, le=0.9)

    REVISION: ClassVar[int] = 2

    @model_validator(mode="after")
    def _rule_is_whole(self) -> PatternReasoningConfig:
        for name, rule in (("period", "periodic"), ("families", "interleaved")):
            value = getattr(self, name)
            if self.rule == rule and value is None:
                raise ValueError(f"rule {rule} needs {name}; {_LIKE[name]}")
            if self.rule != rule and value is not None:
                raise ValueError(
                    f"{name} says nothing of rule {self.rule}; leave it out, or set rule: {rule}"
                )
        if self.families is not None and self.families[0] == self.families[1]:
            raise ValueError(f"families={list(self.families)} are one; interleave two different ones")
        return self

    @model_validator(mode="after")
    def _rule_is_shown(self) -> PatternReasoningConfig:
        needed, why = self._family.n_identify, "are needed to know the rule"
        if self.invalid_share:
            needed, why = needed + 1, "are needed to tell a wrong one (with invalid_share: 0 one less)"
        if self.n_shown < needed:
            raise ValueError(
                f"n_shown={self.n_shown}: of rule {self.rule} {needed} numbers {why}; show {needed} or more"
            )
        return self

    @property
    def _family(self) -> Family:
        if self.rule == "periodic":
            assert self.period is not None
            return Periodic(self.period)
        if self.rule == "interleaved":
            assert self.families is not None
            return Interleaved(*self.families)
        return FAMILIES[self.rule]

    @property
    def n_ids(self) -> int:
        return FIRST_NUMBER + PRIME

    @property
    def _before(self) -> int:
        """Places before the question."""
        return self.n_examples * (self.n_shown + 2)

    @property
    def _answer_at(self) -> int:
        """The place of ANS, where the first answer is asked."""
        return self._before + self.n_shown + 1

    @property
    def _length(self) -> int:
        return self._answer_at + self.n_predict

    def n_asked(self, seq_len: int) -> float:
        return self.invalid_share + (1 - self.invalid_share) * self.n_predict

    def chance(self) -> float:
        """Where wrong numbers are commoner than any one number, INVALID is the best guess of the first answer."""
        wrong, n = self.invalid_share, self.n_predict
        number = (1 - wrong) / (PRIME - 1)  # a geometric sequence is never 0
        return (max(wrong, number) + (n - 1) * number) / self.n_asked(self._length)

    def check(self, seq_len: int) -> None:
        if seq_len < self._length:
            raise ValueError(
                f"seq_len={seq_len}: examples, question and answer take {self._length} places; use a seq_len from "
                "there on, or fewer numbers"
            )

    def draw(
        self, random: np.random.Generator, n: int, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        S, E, at, end = self.n_shown, self.n_examples, self._answer_at, self._length
        first_NEM, keys_N = self._family.draw(random, n, E + 1)
        terms_NEX = self._family.extended(first_NEM, S + self.n_predict)
        wrong_N = random.random(n) < self.invalid_share
        terms_NEX[wrong_N, -1, :S] = corrupted(random, terms_NEX[wrong_N, -1, :S], self._family)
        numbers_NEX = FIRST_NUMBER + terms_NEX
        ids_NT = np.full((n, seq_len), PADDING, np.int64)
        targets_NT = np.full((n, seq_len), UNASKED, np.int64)
        shown_NEX = np.full((n, E, S + 2), RULE)
        shown_NEX[..., 1:-1], shown_NEX[..., -1] = numbers_NEX[:, :E, :S], SEP
        ids_NT[:, : self._before] = shown_NEX.reshape(n, -1)
        ids_NT[:, self._before], ids_NT[:, at - S : at], ids_NT[:, at] = RULE, numbers_NEX[:, -1, :S], ANS
        ids_NT[:, at + 1 : end] = numbers_NEX[:, -1, S:-1]
        targets_NT[:, at:end] = numbers_NEX[:, -1, S:]
        ids_NT[wrong_N, at + 1 :], targets_NT[wrong_N, at + 1 :] = PADDING, UNASKED
        targets_NT[wrong_N, at] = INVALID
        return ids_NT, targets_NT, keys_N

    def solve(self, ids_NT: np.ndarray) -> np.ndarray:
        S, at = self.n_shown, self._answer_at
        shown_NS = ids_NT[:, at - S : at].astype(np.int64) - FIRST_NUMBER
        found_NX = self._family.extended(shown_NS, S + self.n_predict)
        answers_NT = np.zeros_like(ids_NT)
        answers_NT[:, at : self._length] = FIRST_NUMBER + found_NX[:, S:]
        answers_NT[~self._family.fits(shown_NS), at] = INVALID
        return answers_NT

    def query_only(self, ids_NT: np.ndarray) -> np.ndarray:
        """Without any number: the next would tell of the one after."""
        return np.where(ids_NT >= FIRST_NUMBER, 0, ids_NT)


_LIKE = {
    "period": "the numbers that are repeated, 3 for example",
    "families": "two of arithmetic, geometric, fibonacci and affine, [arithmetic, geometric] for example",
}
