"""The ranks that train one trial together. Alone, nothing is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process's place among the trial's ranks; every method is called by all of them, in the same order."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Group:
        """The process group torch.distributed was initialised with, if it was."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this rank is the one that writes, reports and decides."""
        return self.rank == 0

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place; the same bits on each."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def told(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box: list[Any] = [value if self.leads else None]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found


ALONE = Group()
