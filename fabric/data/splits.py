"""Which documents train, which validate, which test: by document, and equal texts always together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fabric.data.corpus import SPLITS, CorpusError

TRAIN, VALIDATION, TEST = range(len(SPLITS))
NOT_GIVEN = -1
DROPPED = 255
MERGE_FROM = 1 << 20  # distinct texts that wait before they are sorted in


@dataclass(frozen=True)
class SplitTable:
    """The split of every distinct text: `digest` uint64, sorted; `home` uint8; `held_out`: published as such, bool."""

    digest: np.ndarray
    home: np.ndarray
    held_out: np.ndarray

    def splits(self, digests: np.ndarray, given: int) -> np.ndarray:
        """The split of each document of a file, whose published split is `given`: uint8 of TRAIN, VALIDATION, TEST or
        DROPPED, which is a copy of a text that is kept in a later split.
        """
        place = np.searchsorted(self.digest, digests)
        found = np.array(self.home[place])
        if given > TRAIN:
            found[found != given] = DROPPED
        if given == TRAIN:
            found[self.held_out[place]] = DROPPED
        return found


class Groups:
    """The distinct texts of a corpus, gathered block by block: memory grows with them, not with the documents.

    Documents with one digest (the same text) form a group, and groups are what is assigned to splits. The result
    depends on nothing but what was added: not on block sizes, files or platform.
    """

    def __init__(self) -> None:
        self._held = (np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int8))
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._n_waiting = 0

    def add(self, digests: np.ndarray, n_bytes: np.ndarray, given: int) -> None:
        """Documents of a file whose published split is `given` (NOT_GIVEN: none)."""
        self._waiting.append(_grouped(digests, n_bytes, np.full(len(digests), given, np.int8)))
        self._n_waiting += len(self._waiting[-1][0])
        if self._n_waiting > max(MERGE_FROM, len(self._held[0])):
            self._merge()

    def _merge(self) -> None:
        parts = [self._held, *self._waiting]
        digests, n_bytes, given = (np.concatenate([p[i] for p in parts]) for i in range(3))
        self._held = _grouped(digests, n_bytes, given)
        self._waiting, self._n_waiting = [], 0

    def assign(self, validation_fraction: float, test_fraction: float, seed: int) -> SplitTable:
        """Give every distinct text a split.

        A published split is kept; where a text was published in two, it stays in the later of train, validation,
        test. A split that was not published is cut from the rest: groups in an order keyed by (seed, digest), cut
        where the bytes come nearest to the fraction asked for. Raises CorpusError when there are fewer distinct
        documents than splits to fill.
        """
        self._merge()
        digests, n_bytes, published = self._held
        fractions = {
            VALIDATION: 0.0 if (published == VALIDATION).any() else validation_fraction,
            TEST: 0.0 if (published == TEST).any() else test_fraction,
        }
        home = published.astype(np.uint8)
        pool = np.flatnonzero(published <= TRAIN)
        order = np.argsort(keyed(digests[pool], seed), kind="stable")
        home[pool] = TRAIN
        _cut_from(home, pool[order], n_bytes[pool][order], fractions)
        return SplitTable(digests, home, published > TRAIN)


def _grouped(
    digests: np.ndarray, n_bytes: np.ndarray, given: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct digests in order, the bytes of all their documents, and the latest split any was published in."""
    unique, group = np.unique(digests, return_inverse=True)
    sizes = np.bincount(group, weights=n_bytes, minlength=len(unique)).astype(np.int64)
    latest = np.full(len(unique), NOT_GIVEN, np.int8)
    np.maximum.at(latest, group, given)  # TEST > VALIDATION > TRAIN > NOT_GIVEN
    return unique, sizes, latest


def _cut_from(home: np.ndarray, order: np.ndarray, sizes: np.ndarray, fractions: dict[int, float]) -> None:
    """Give the first groups of `order` to the splits with a fraction above zero, at least one to each."""
    wanted = [split for split, fraction in fractions.items() if fraction > 0]
    if len(order) <= len(wanted):
        names = ", ".join(SPLITS[s] for s in [TRAIN, *wanted])
        raise CorpusError(
            f"the corpus has {len(order)} distinct training document(s), too few to cut {names} by document; "
            "choose a finer document rule (documents: line), give more text, or publish the splits as files "
            "called train, valid and test"
        )
    ends = np.cumsum(sizes, dtype=np.float64)
    begin, target = 0, 0.0
    for still_to_come, split in zip(range(len(wanted) - 1, -1, -1), wanted):
        target += fractions[split] * float(ends[-1])
        nearest = int(np.argmin(np.abs(ends - target))) + 1
        end = min(max(nearest, begin + 1), len(order) - 1 - still_to_come)
        home[order[begin:end]] = split
        begin = end


def keyed(digests: np.ndarray, seed: int) -> np.ndarray:
    """Pseudo-random uint64 per digest: splitmix64's finaliser, a bijection, on digest + seed."""
    key = int.from_bytes(hashlib.blake2b(f"split:{seed}".encode(), digest_size=8).digest(), "little")
    x = digests + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
