"""Run records: what a full disk, a second driver or a torn file does to them."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fabric.store import LockedError, Store, StoreUnavailableError, driver_lock, told_when_full
from fabric.store.objects import LocalObjects


class Full(LocalObjects):
    """A disk that is full after `room` more objects; counts what it is asked to list."""

    def __init__(self, root: Path, room: int = 10**9, number: int = errno.ENOSPC) -> None:
        super().__init__(root)
        self.room, self.number, self.listed = room, number, 0

    def _write_flushed(self, target: Path, data: bytes) -> Path:
        self.room -= 1
        if self.room < 0:
            raise OSError(self.number, "as the system says it")
        return super()._write_flushed(target, data)

    def list(self, prefix: str) -> list[str]:
        self.listed += 1
        return super().list(prefix)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_says_which_and_what_to_do(tmp_path, number):
    objects = Full(tmp_path, 0, number)
    for write in (objects.put, objects.create):
        with pytest.raises(
            StoreUnavailableError, match=f"below {tmp_path}.*the same command goes on"
        ) as raised:
            write("a/b", b"x")
        assert raised.value.errno == number
    assert objects.list("") == []


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), told_when_full(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(StoreUnavailableError, match="first") as raised, told_when_full(tmp_path):
        raise StoreUnavailableError(errno.ENOSPC, "first")
    assert str(raised.value).count("No space") == 0, "told once"


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_checkpoint_cut_short_by_a_full_disk_leaves_nothing(tmp_path, room):
    objects = Full(tmp_path)
    attempt = Store(tmp_path, objects).trial("t").new_attempt({})
    attempt.save_checkpoint(1, {"w": b"1", "o": b"1"}, {}, keep_last=1)
    objects.room = room
    with pytest.raises(StoreUnavailableError):
        attempt.save_checkpoint(2, {"w": b"2", "o": b"2"}, {}, keep_last=1)
    record = Store(tmp_path).trial("t")
    assert [c.step for c in record.checkpoints()] == [1]
    assert not [k for k in objects.list("trials/t") if f"{2:010d}" in k]
    assert record.read_checkpoint(record.checkpoints()[0]) == {"w": b"1", "o": b"1"}
    objects.room = 99
    attempt.save_checkpoint(2, {"w": b"2", "o": b"2"}, {}, keep_last=1)
    assert [c.step for c in record.checkpoints()] == [2]


def test_checkpoints_are_kept_without_walking_the_record(tmp_path):
    objects = Full(tmp_path)
    attempt = Store(tmp_path, objects).trial("t").new_attempt({})
    other = Store(tmp_path).trial("t").new_attempt({})
    other.save_checkpoint(1, {"w": b"0"}, {}, keep_last=1)
    objects.listed = 0
    for step in range(2, 8):
        attempt.save_checkpoint(step, {"w": b"1"}, {}, keep_last=2)
    assert objects.listed == 0
    assert [(c.attempt, c.step) for c in Store(tmp_path).trial("t").checkpoints()] == [(2, 1), (1, 6), (1, 7)]


def test_the_last_checkpoint_of_a_finished_trial_stays_whosever_it_is(tmp_path):
    """The process that wrote it was killed before its last word; the next one had nothing left to train."""
    record = Store(tmp_path).trial("t")
    first = record.new_attempt({})
    for step in (1, 2):
        first.save_checkpoint(step, {"w": b"1"}, {}, keep_last=2)
    record.new_attempt({"resumed_step": 2}).write_status("finished", 2, {"kind": "completed"}, {})
    record.drop_older_checkpoints()
    assert [(c.attempt, c.step) for c in record.checkpoints()] == [(1, 2)]


HOLD = """
import sys, time
from fabric.store import driver_lock
from pathlib import Path
with driver_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_names_its_holder_and_falls_when_that_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        began = time.monotonic()
        with pytest.raises(LockedError, match=f"in use by process {holder.pid} on "), driver_lock(tmp_path):
            pass
        assert time.monotonic() - began < 5
        holder.kill()
    with driver_lock(tmp_path):
        pass


def test_a_look_at_the_lock_does_not_turn_a_sweep_away(tmp_path):
    """`fabric status` takes the lock for an instant to see whether a driver lives."""
    with open(tmp_path / "driver.lock", "a") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        threading.Timer(0.2, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with driver_lock(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / "driver.lock").read_text()
