"""The ranks that train one trial together. Alone, nothing is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")
HEARD_EVERY = 0.5  # seconds, about, between two words of rank 0's about the time


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


class Pace:
    """When the ranks ask rank 0 what its clock says: some times a second, since each asking is a message. Alone, after
    every step.
    """

    def __init__(self, group: Group, clock: Callable[[], float]) -> None:
        self._group, self._clock = group, clock
        self._last, self._began = 0, clock()
        self._steps = 1  # from one asking to the next

    def told(self, step: int, value: Callable[[], T], otherwise: T) -> T:
        """Rank 0's value after `step` when it is time to ask, else `otherwise`; the same on every rank."""
        if self._group.world == 1:
            return value()
        if step < self._last + self._steps:
            return otherwise
        now = self._clock()
        in_time = HEARD_EVERY * max(1, step - self._last) / max(now - self._began, 1e-6)
        steps = max(1, min(2 * self._steps, int(in_time)))
        answer, self._steps = self._group.told((value(), steps))
        self._last, self._began = step, now
        return answer
