"""Splits of a labelled data set, those that are not published cut out of those that are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from fabric.data.corpus import SPLITS

T = TypeVar("T")

VALIDATION_SHARE = 0.1  # of training items, where no validation split is published
TEST_SHARE = 0.2  # where one split is all that is published


class Divided(NamedTuple):
    """Items by split; what a reader of scores must know of how they came to be."""

    items: Mapping[str, Sequence[object]]
    remarks: tuple[str, ...]


def divided(published: Mapping[str, Sequence[T]], group: Callable[[T], str], seed: int) -> Divided:
    """Training, validation and test items of what is published (`train`, `validation`, `test`; the last always is).

    Items of one group (an article's questions, say) are never in two splits that are cut out of one. Which group goes
    where is decided by a hash of (seed, group) alone. Raises ValueError where there are too few groups to divide.
    """
    test = published["test"]
    train, validation = published.get("train"), published.get("validation")
    if train is not None and validation is not None:
        return Divided({"train": train, "validation": validation, "test": test}, ())
    if train is not None:
        parts = _parts(train, group, seed, (VALIDATION_SHARE,))
        said = f"no validation split: {len(parts[0])} training items of {len(train)} are held out for it"
        return Divided({"validation": parts[0], "train": parts[1], "test": test}, (said,))
    parts = _parts(test, group, seed, (TEST_SHARE, VALIDATION_SHARE))
    sizes = dict(zip(("test", "validation", "train"), parts, strict=True))
    counts = ", ".join(f"{name} {len(sizes[name])}" for name in SPLITS)
    said = f"no training split: the published one of {len(test)} items is divided ({counts})"
    return Divided(sizes, (said,))


def _parts(
    items: Sequence[T], group: Callable[[T], str], seed: int, shares: Sequence[float]
) -> list[list[T]]:
    """The shares of all groups, and then the rest; at least one group each, items in their order."""
    groups = sorted({group(item) for item in items}, key=lambda name: _hash(seed, name))
    if len(groups) <= len(shares):
        raise ValueError(
            f"{len(groups)} group(s) of items cannot be divided into {len(shares) + 1} splits; give more data"
        )
    number: dict[str, int] = {}
    begin = 0
    for i, share in enumerate(shares):
        end = begin + max(1, round(share * len(groups)))
        number |= dict.fromkeys(groups[begin:end], i)
        begin = end
    parts: list[list[T]] = [[] for _ in range(len(shares) + 1)]
    for item in items:
        parts[number.get(group(item), len(shares))].append(item)
    return parts


def _hash(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()


def sample(items: Sequence[T], n: int | None, seed: int, name: Callable[[T], str]) -> list[T]:
    """The first `n` items (None: all) in an order by a hash of (seed, name): a smaller sample is part of a larger."""
    if n is None:
        return list(items)
    return sorted(items, key=lambda item: _hash(seed, name(item)))[:n]
