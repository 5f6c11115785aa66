"""Who reads which unit of a stream: units dealt to ranks, and where each rank stands.

The units of a text come in an endless sequence: position p is unit `permute(p mod n)` of epoch p // n. A deal is that
sequence from some point on, with what was left unfinished in front; its item k is rank (k mod world)'s. So no two
ranks read one row, and from the places of all ranks a deal can be made for any other number of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from fabric.data.order import mix, permute


def unit_at(position: int, n_units: int, seed: int) -> int:
    """The unit at a position of the endless sequence: every epoch has each unit once."""
    epoch, place = divmod(position, n_units)
    return int(permute(np.array([place]), n_units, seed, epoch)[0])


def row_order(n_rows: int, seed: int, position: int) -> np.ndarray:
    """The order in which the rows of the unit at a position are read; int64 [n_rows]."""
    digest = hashlib.blake2b(f"rows:{seed}:{position}".encode(), digest_size=8).digest()
    key = np.uint64(int.from_bytes(digest, "little"))
    return np.argsort(mix(np.arange(n_rows, dtype=np.uint64) ^ key), kind="stable")


@dataclass(frozen=True)
class Deal:
    """Positions with the rows already taken of them (`begun`), then every position from `rest` on, untouched."""

    begun: tuple[tuple[int, int], ...] = ()
    rest: int = 0

    def item(self, k: int) -> tuple[int, int]:
        """The k-th position, and the rows taken of it before."""
        return self.begun[k] if k < len(self.begun) else (self.rest + k - len(self.begun), 0)

    def after(self, places: Sequence[tuple[int, int]]) -> Deal:
        """The deal of what is left when rank r of len(places) stands at item `places[r][0]` with [1] rows taken."""
        world = len(places)
        end = max(len(self.begun), *(k + 1 for k, _ in places))
        left = []
        for k in range(end):
            at, taken = places[k % world]
            if k >= at:
                left.append((self.item(k)[0], taken) if k == at else self.item(k))
        return Deal(tuple(left), self.rest + end - len(self.begun))


@dataclass(frozen=True)
class Places:
    """A deal and where every rank stands in it: what a checkpoint keeps of a stream."""

    deal: Deal
    ranks: tuple[tuple[int, int], ...]  # item, rows taken of it

    @classmethod
    def first(cls, world: int) -> Self:
        """The beginning, for a number of ranks."""
        return cls(Deal(), tuple((rank, 0) for rank in range(world)))

    def for_world(self, world: int) -> Places:
        """The same places where the number of ranks is the same; else what is left, dealt anew."""
        if world == len(self.ranks):
            return self
        deal = self.deal.after(self.ranks)
        return Places(deal, tuple((rank, deal.item(rank)[1]) for rank in range(world)))

    def items_of(self, rank: int) -> Iterator[tuple[int, int, int]]:
        """A rank's items from its place on, without end: number, position, rows already taken."""
        k, taken = self.ranks[rank]
        while True:
            yield k, self.deal.item(k)[0], taken
            k += len(self.ranks)
            taken = self.deal.item(k)[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "begun": [list(b) for b in self.deal.begun],
            "rest": self.deal.rest,
            "ranks": [list(r) for r in self.ranks],
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        deal = Deal(tuple((p, t) for p, t in saved["begun"]), saved["rest"])
        return cls(deal, tuple((k, t) for k, t in saved["ranks"]))
