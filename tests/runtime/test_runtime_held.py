"""What a dead worker group held is given back, and nothing of other jobs on the same cluster."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table

from fabric.runtime.held import GroupsHold

OTHER = """
import sys, ray
from ray.util.placement_group import placement_group
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
print(placement_group([{"CPU": 0.5}]).id.hex(), flush=True)
sys.stdin.read()
"""


@ray.remote(num_cpus=0)
class Holder:
    """Holds a group, as Tune's actor does."""

    def hold(self) -> PlacementGroup:
        return placement_group([{"CPU": 0.5}])


def holding() -> tuple[object, str]:
    holder = Holder.remote()
    return holder, ray.get(holder.hold.remote()).id.hex()


@pytest.mark.ray
def test_what_dead_actors_of_this_run_held_is_given_back_and_nothing_else(ray_session):
    command = [sys.executable, "-c", OTHER, ray.get_runtime_context().gcs_address]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        theirs = other.stdout.readline().strip()
        users_actor, users = holding()
        held = GroupsHold()
        tunes = placement_group([{"CPU": 0.1}]).id.hex()
        (dead, its), (living, goes_on) = holding(), holding()
        ray.kill(dead)
        ray.kill(users_actor)
        deadline = time.monotonic() + 20
        while state(its) != "REMOVED":
            assert time.monotonic() < deadline
            held.look()
            time.sleep(0.1)
        assert "REMOVED" not in [state(s) for s in (theirs, users, tunes, goes_on)]
        ray.kill(living)
        held.end()
        assert state(goes_on) == "REMOVED"
        assert "REMOVED" not in [state(s) for s in (theirs, users, tunes)]
        for name in (users, tunes):
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))
    finally:
        other.communicate("")


def state(placement_group: str) -> str:
    return str(placement_group_table()[placement_group]["state"])
