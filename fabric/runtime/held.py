"""Placement groups of worker groups that died: Ray keeps them until the driver ends, and their CPUs with them."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray._raylet import PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group

TUNES = "node:__internal_head__"  # what only Tune's own placement groups of a run of worker groups ask for


def give_back(placement_group: str) -> None:
    """Free what a worker group held, if it is still there."""
    with contextlib.suppress(Exception):  # it, or all of Ray, is gone already
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(placement_group))))


def held_by_groups() -> list[str]:
    """The placement groups of this driver's job that are not Tune's own; a cluster may hold other jobs' too."""
    state: Any = ray._private.state.state
    messages: Any = gcs_pb2
    job, kind = ray.get_runtime_context().get_job_id(), messages.PlacementGroupTableData
    groups = [kind.FromString(data) for data in state._connect_and_get_accessor().get_placement_group_table()]
    return [
        group.placement_group_id.hex()
        for group in groups
        if group.creator_job_id.hex() == job
        and group.state != kind.REMOVED
        and not any(TUNES in bundle.unit_resources for bundle in group.bundles)
    ]


class GroupsHold:
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
            with contextlib.suppress(Exception):  # all of Ray is gone
                for unknown in held_by_groups():
                    give_back(unknown)

    def all(self) -> None:
        """The run is over."""
        for held in self._by_trial.values():
            give_back(held)
