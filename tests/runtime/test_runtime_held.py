"""What a dead worker group held is given back, and nothing of other jobs on the same cluster."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from fabric.runtime.held import TUNES, GroupsHold, held_by_groups

OTHER = """
import sys, ray
from ray.util.placement_group import placement_group
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
print(placement_group([{"CPU": 0.5}]).id.hex(), flush=True)
sys.stdin.read()
"""


@pytest.mark.ray
def test_what_a_group_of_ours_held_is_found_and_nothing_else(ray_session):
    command = [sys.executable, "-c", OTHER, ray.get_runtime_context().gcs_address]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        theirs = other.stdout.readline().strip()
        assert state(theirs) != "REMOVED"
        before = set(held_by_groups())
        ours, tunes = placement_group([{"CPU": 0.5}]), placement_group([{"CPU": 0, TUNES: 0.001}])
        assert set(held_by_groups()) - before == {ours.id.hex()}
        held = GroupsHold()
        held.lost("starting", others=True)
        assert state(ours.id.hex()) != "REMOVED", "another trial's group may be starting"
        held.lost("starting", others=False)
        assert gone(ours.id.hex())
        assert state(tunes.id.hex()) != "REMOVED"
        assert state(theirs) != "REMOVED"
        held.note("trial", tunes.id.hex())
        held.lost("trial", others=True)
        assert gone(tunes.id.hex())
    finally:
        other.communicate("")


def state(placement_group: str) -> str:
    return str(placement_group_table()[placement_group]["state"])


def gone(placement_group: str) -> bool:
    deadline = time.monotonic() + 10
    while state(placement_group) != "REMOVED" and time.monotonic() < deadline:
        time.sleep(0.1)
    return state(placement_group) == "REMOVED"
