"""Placement groups of worker groups that died: Ray keeps them until the driver ends, and their CPUs with them."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ray
from ray._raylet import PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group

LOOK_EVERY = 1.0  # seconds
DEAD_WITHIN = 10.0  # seconds, of Tune's actors after their run


class GroupsHold:
    """What the worker groups of this driver's trials hold: placement groups made by actors of its job.

    Tune's own are made by the driver, and a cluster may hold other jobs'.
    """

    def __init__(self) -> None:
        self._before = frozenset(self._held())
        self._looked = time.monotonic()

    def _held(self) -> dict[str, bool]:
        """Placement groups by id, and whether the actor that made them is dead."""
        state: Any = ray._private.state.state
        messages: Any = gcs_pb2
        job, kind = ray.get_runtime_context().get_job_id(), messages.PlacementGroupTableData
        rows = state._connect_and_get_accessor().get_placement_group_table()
        groups = [kind.FromString(row) for row in rows]
        return {
            group.placement_group_id.hex(): group.creator_actor_dead
            for group in groups
            if group.creator_job_id.hex() == job
            and set(group.creator_actor_id) - {0xFF}  # not the driver
            and group.state != kind.REMOVED
        }

    def look(self) -> None:
        """Give back what the dead held; Ray is asked every second at most."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        with contextlib.suppress(Exception):  # all of Ray is gone
            self._give_back()

    def _give_back(self) -> bool:
        """Whether somebody still holds something."""
        held = {name: dead for name, dead in self._held().items() if name not in self._before}
        for name, dead in held.items():
            if dead:
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))
        return not all(held.values())

    def end(self) -> None:
        """The run is over: its actors die now."""
        deadline = time.monotonic() + DEAD_WITHIN
        with contextlib.suppress(Exception):
            while self._give_back() and time.monotonic() < deadline:
                time.sleep(0.1)
