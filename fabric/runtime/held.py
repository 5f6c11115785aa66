"""Placement groups of worker groups that died: Ray keeps them until the driver ends, and their CPUs with them."""

from __future__ import annotations

import contextlib

from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

TUNES = "__tune_"  # how Tune names its own


def give_back(placement_group: str) -> None:
    """Free what a worker group held, if it is still there."""
    with contextlib.suppress(Exception):  # it, or all of Ray, is gone already
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(placement_group))))


class Held:
    """What the worker groups of a run's trials hold, by Tune's id of the trial each last worked for."""

    def __init__(self) -> None:
        self._by_trial: dict[str, str] = {}

    def note(self, tune_id: str, placement_group: str) -> None:
        """A trial's group is up."""
        self._by_trial[tune_id] = placement_group

    def lost(self, tune_id: str, others: bool) -> None:
        """A trial ended in an error: its group, if it was up, is gone.

        One that was still starting has told nobody what it holds; it is found where no other trials run.
        """
        if (held := self._by_trial.pop(tune_id, None)) is not None:
            give_back(held)
        elif not others:
            self._give_back_unknown()

    def all(self) -> None:
        """The run is over."""
        for held in self._by_trial.values():
            give_back(held)

    @staticmethod
    def _give_back_unknown() -> None:
        with contextlib.suppress(Exception):
            for name, group in placement_group_table().items():
                if group["state"] != "REMOVED" and not group["name"].startswith(TUNES):
                    give_back(name)
