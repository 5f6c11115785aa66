"""Which documents train, which validate, which test: by document, and equal texts always together."""

from __future__ import annotations

import hashlib

import numpy as np

from fabric.data.corpus import SPLITS, CorpusError

TRAIN, VALIDATION, TEST = range(len(SPLITS))
NOT_GIVEN = -1
DROPPED = 255


def assign_splits(
    digests: np.ndarray,
    n_bytes: np.ndarray,
    given: np.ndarray,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> np.ndarray:
    """A split for every document: uint8 [n] of TRAIN, VALIDATION, TEST or DROPPED.

    Documents with one digest (the same text) form a group, and groups are what is assigned. `given` (int8
    [n], the published split or NOT_GIVEN) is kept; where a text was published in two splits it stays in the
    later of train, validation, test, and its other copies are dropped. A split that was not given is cut from
    the rest: groups in an order keyed by (seed, digest), cut where the bytes come nearest to the fraction
    asked for.

    The result depends on nothing but the arguments' contents: not on block sizes, files or platform.
    Raises CorpusError when there are fewer distinct documents than splits to fill.
    """
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    home = np.full(len(first), NOT_GIVEN, np.int8)
    np.maximum.at(home, group, given)  # TEST > VALIDATION > TRAIN > NOT_GIVEN
    fractions = {
        VALIDATION: 0.0 if (home == VALIDATION).any() else validation_fraction,
        TEST: 0.0 if (home == TEST).any() else test_fraction,
    }
    home = home.astype(np.int64)
    pool = np.flatnonzero((home == NOT_GIVEN) | (home == TRAIN))
    sizes = np.bincount(group, weights=n_bytes, minlength=len(first))[pool]
    order = np.argsort(keyed(digests[first][pool], seed), kind="stable")
    home[pool] = TRAIN
    _cut_from(home, pool[order], sizes[order], fractions)
    result = home[group].astype(np.uint8)
    result[(given != NOT_GIVEN) & (given > TRAIN) & (given != result)] = DROPPED
    result[(given == TRAIN) & _published_elsewhere(given, group)] = DROPPED
    return result


def _published_elsewhere(given: np.ndarray, group: np.ndarray) -> np.ndarray:
    """For each document, whether its text was published as validation or test as well."""
    held_out = np.zeros(int(group.max(initial=-1)) + 1, bool)
    held_out[group[given > TRAIN]] = True
    return held_out[group]


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
    ends = np.cumsum(sizes)
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
