"""One driver a job where nothing can be locked: numbered leases on object storage."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fabric.store import LockedError, StoreUnavailableError, driver_lives, driver_lock, lease, located
from fabric.store.remote import RemoteObjects
from fabric.store.store import objects_at

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from fabric.store import driver_lock, located
with driver_lock(located(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that a test can wait."""
    for name, value in (("BEAT", 0.05), ("SILENT", 0.6), ("LOOK", 0.05)):
        monkeypatch.setattr(lease, name, value)


def numbers(root) -> list[str]:
    return objects_at(root).list("driver")


def test_one_of_many_holds_it_and_the_others_are_told_by_whom(s3) -> None:
    root = located(s3.new())

    def drive(_: int) -> str:
        try:
            with driver_lock(root):
                time.sleep(1.0)
                return "held"
        except LockedError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        said = list(pool.map(drive, range(6)))
    assert said.count("held") == 1
    assert all(s == "held" or "is in use by process " in s for s in said)
    assert not driver_lives(root)


def test_leases_are_counted_on_and_old_ones_dropped(s3) -> None:
    root = located(s3.new())
    for number in (1, 2, 3):
        with driver_lock(root) as objects:
            assert driver_lives(root)
            assert numbers(root) == [f"driver/{number:06d}.json"]
            objects.put("a", b"1")
    assert not driver_lives(root)


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(s3) -> None:
    root = located(s3.new())
    command = [sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(LockedError, match=f"{root} is in use by process {holder.pid} on "),
            driver_lock(root),
        ):
            pass
        assert driver_lives(root)
        holder.kill()
    began = time.monotonic()
    assert not driver_lives(root)
    with driver_lock(root):
        assert time.monotonic() - began < lease.SILENT / 4


def test_a_driver_on_another_machine_lives_while_its_counter_beats(quick, monkeypatch) -> None:
    root = located("memory://beats/job")
    with driver_lock(root) as objects:
        monkeypatch.setattr(lease, "_machine", lambda: "another")
        with (
            pytest.warns(RuntimeWarning, match="whether process .* still drives"),
            pytest.raises(LockedError),
        ):
            driver_lock(root).__enter__()
        objects.put("a", b"1")


def test_a_silent_driver_is_replaced_and_writes_nothing_more(quick, monkeypatch) -> None:
    root = located("memory://silent/job")
    with driver_lock(root) as old:
        old.put("a", b"1")
        monkeypatch.setattr(lease.Lease, "beat", lambda self: None)  # its network is gone
        monkeypatch.setattr(lease, "_machine", lambda: "another")
        began = time.monotonic()
        with warnings.catch_warnings(record=True) as told, driver_lock(root) as new:
            assert any("still drives" in str(w.message) for w in told)
            assert time.monotonic() - began >= lease.SILENT
            new.put("a", b"2")
            monkeypatch.undo()  # and back
            monkeypatch.setattr(lease, "BEAT", 0.05)
            for _ in range(200):
                time.sleep(0.05)
                if old._lease.is_lost:
                    break
            for write in (old.put, old.create):
                with pytest.raises(StoreUnavailableError, match="another driver has taken over"):
                    write("a", b"3")
            with pytest.raises(StoreUnavailableError, match="taken over"):
                old.delete("a")
            assert old.get("a") == b"2"
    assert not driver_lives(root)


def test_a_damaged_lease_is_free() -> None:
    root = located("memory://torn/job")
    objects_at(root).put("driver/000007.json", b'{"hol')
    with driver_lock(root):
        assert numbers(root) == ["driver/000008.json"]


def test_a_store_that_overwrites_what_it_was_told_not_to_is_refused(monkeypatch) -> None:
    def create(self: RemoteObjects, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True

    monkeypatch.setattr(RemoteObjects, "create", create)
    with (
        pytest.raises(
            StoreUnavailableError, match="memory://naive/job overwrites .*honours conditional writes"
        ),
        driver_lock(located("memory://naive/job")),
    ):
        pass
