"""What every kind of labelled examples declares, and what those that are drawn from a generator share.

Shapes: N rows, T positions of a row. `ids_NT` int32, -1 for padding, which is on the right; `targets_NT` int32, at each
position the answer that is asked there, `UNASKED` (-100) where nothing is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fabric.data.corpus import SPLITS, DataPart
from fabric.data.order import mix
from fabric.job.units import Count

if TYPE_CHECKING:
    from fabric.data.tokenizer import Tokenizer

PADDING, UNASKED = -1, -100
CHUNK = 2048  # rows drawn at a time
SHARES = 16  # of all that can be drawn: one is validation's, one the test's, the rest training's
MOST_CHUNKS = 4096  # without a row that is new to the split's share: its space is (nearly) empty
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Rows = tuple[np.ndarray, np.ndarray]
# What a target is: the id that follows, the number of a row's class, a row's number in steps of `NUMBER_STEP`, the
# number of a word's tag, or whether a span begins (`BEGINS`) or ends (`ENDS`) there.
Asks = Literal["ids", "class", "number", "tags", "span"]
NUMBER_STEP = 1e-4
BEGINS, ENDS = 1, 2


class Built(NamedTuple):
    """A split as rows. `items`: of each row, plain JSON, what a judge of answers needs beside the targets; None:
    nothing; its `owner` says which rows belong together. `remarks`: what a reader of scores must know."""

    ids_NT: np.ndarray
    targets_NT: np.ndarray
    items: Sequence[Mapping[str, Any]] | None = None
    remarks: tuple[str, ...] = ()


class ExamplesConfig(DataPart):
    """Base of the files in `fabric/data/examples/`.

    `READS_TEXT`: whether its rows are text, which a tokenizer makes ids of; else it has ids of its own.
    """

    READS_TEXT: ClassVar[bool] = False

    @property
    def asks(self) -> Asks:
        """What its targets are."""
        return "ids"

    @property
    def n_answers(self) -> int | None:
        """How many there are to choose from: targets are below it. None: as many as ids."""
        return None

    @property
    @abstractmethod
    def n_ids(self) -> int:
        """Size of its own vocabulary; not asked of a kind that reads text."""

    @abstractmethod
    def identity(self, cache_root: Path) -> dict[str, Any]:
        """What decides its rows, as plain values: parameters, contents of files, revision; never a path."""

    def check(self, seq_len: int) -> None:
        """Raise ValueError where rows of `seq_len` positions cannot hold what is asked for."""

    def texts(self) -> Iterator[str]:
        """The training split's texts, for a tokenizer that is trained; nothing where rows are no text."""
        return iter(())

    def n_asked(self, seq_len: int) -> float | None:
        """Positions of a row that are asked, on average; None where only the rows themselves say."""
        return None

    @abstractmethod
    def build(self, split: str, seq_len: int, tokenizer: Tokenizer | None) -> Rows:
        """All rows of a split, ids_NT and targets_NT. No row is in two splits; every row asks something."""

    def built(self, split: str, seq_len: int, tokenizer: Tokenizer | None) -> Built:
        """The same with what goes beside it."""
        return Built(*self.build(split, seq_len, tokenizer))


class GeneratedExamples(ExamplesConfig):
    """Base of synthetic tasks: rows drawn by a generator of numbers that is seeded by (`seed`, split).

    What can be drawn is divided among the splits by a hash of the row (or of what the task holds out), so no
    validation or test row is ever trained on, whatever the seeds. The defaults are zoology's numbers of rows over five
    for training; a run that reads more begins anew, in another order.
    """

    n_train: Count = Field(default=20_000, ge=1, le=10_000_000)
    n_validation: Count = Field(default=1_000, ge=1, le=1_000_000)
    n_test: Count = Field(default=3_000, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0)

    @abstractmethod
    def draw(
        self, random: np.random.Generator, n: int, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`n` rows: ids_NT, targets_NT, and keys_N, uint64: rows of one key are never in two splits (`row_keys`)."""

    @abstractmethod
    def n_asked(self, seq_len: int) -> float:
        """Positions of a row that are asked: of each row, or what the generator's mean is."""

    @abstractmethod
    def chance(self) -> float:
        """Share of asked positions that are right for who knows the task and sees the question alone."""

    @abstractmethod
    def solve(self, ids_NT: np.ndarray) -> np.ndarray:
        """The right answers, from the ids alone: answers_NT, right wherever a position is asked."""

    @abstractmethod
    def query_only(self, ids_NT: np.ndarray) -> np.ndarray:
        """The same rows with everything blanked (id 0) that answers depend on beside the question."""

    def identity(self, cache_root: Path) -> dict[str, Any]:
        return {**self.model_dump(mode="json"), "revision": self.REVISION}

    def n_rows(self, split: str) -> int:
        """Rows of a split."""
        return {"train": self.n_train, "validation": self.n_validation, "test": self.n_test}[split]

    def build(self, split: str, seq_len: int, tokenizer: Tokenizer | None = None) -> Rows:
        self.check(seq_len)
        wanted, number = self.n_rows(split), SPLITS.index(split)
        random = np.random.default_rng([self.seed, number])
        found: list[Rows] = []
        n = 0
        for _ in range(MOST_CHUNKS):
            ids_NT, targets_NT, keys_N = self.draw(random, CHUNK, seq_len)
            mine_N = split_of(keys_N) == number
            found.append((ids_NT[mine_N].astype(np.int32), targets_NT[mine_N].astype(np.int32)))
            n += int(mine_N.sum())
            if n >= wanted:
                ids, targets = zip(*found)
                return np.concatenate(ids)[:wanted], np.concatenate(targets)[:wanted]
            if not n and len(found) == 64:
                break
        raise ValueError(
            f"examples {self.kind}: only {n} rows were found for the {split} split's share of all there are, and "
            f"{wanted} are asked for; ask for a larger task (more symbols or a longer seq_len)"
        )


def split_of(keys_N: np.ndarray) -> np.ndarray:
    """The split's number (its place in `SPLITS`) of what has a key: a function of the key alone."""
    share_N = (mix(keys_N) % np.uint64(SHARES)).astype(np.int64)
    return np.where(
        share_N == 0,
        SPLITS.index("validation"),
        np.where(share_N == 1, SPLITS.index("test"), SPLITS.index("train")),
    )


def row_keys(values_NK: np.ndarray) -> np.ndarray:
    """uint64 [N]: a hash of each row of integers, places included."""
    places_K = np.arange(1, values_NK.shape[1] + 1, dtype=np.uint64) * _GOLDEN
    words_NK = values_NK.astype(np.int64).astype(np.uint64) + places_K
    return mix(mix(words_NK).sum(axis=1, dtype=np.uint64))


def distinct(random: np.random.Generator, n: int, k: int, size: int) -> np.ndarray:
    """int64 [n, k]: in each row k different numbers below `size`, in random order."""
    if size <= 64 * k:
        return np.argsort(random.random((n, size)), axis=1)[:, :k]
    drawn_NK = random.integers(0, size, (n, k))
    while True:
        in_order = np.sort(drawn_NK, axis=1)
        twice_N = (in_order[:, 1:] == in_order[:, :-1]).any(axis=1)
        if not twice_N.any():
            return drawn_NK
        drawn_NK[twice_N] = random.integers(0, size, (int(twice_N.sum()), k))
