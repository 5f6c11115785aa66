"""One driver a job: a second one is told who holds it and stops."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fabric.store.lease import LockedError, leased, lives, newest
from fabric.store.objects import LocalObjects, Objects
from fabric.store.place import Place, Url
from fabric.store.remote import RemoteObjects

PATIENCE = 0.5  # seconds; `fabric status` holds the lock for an instant to see whether a driver lives


@contextmanager
def driver_lock(root: Place) -> Iterator[Objects]:
    """Hold a job's folder while the block runs, and yield its objects, through which its driver writes.

    A local folder is locked by `<root>/driver.lock`, which the system lets go of when the process dies; a URL by a
    lease (see `fabric.store.lease`). Raises LockedError, naming the holder, when another process has it; ValueError
    when there can be no such folder, StoreUnavailableError when the URL cannot be written.
    """
    if isinstance(root, Url):
        with leased(RemoteObjects(root), root) as objects:
            yield objects
    else:
        with _locked_file(root):
            yield LocalObjects(root)


@contextmanager
def _locked_file(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"{root} cannot be made a folder ({why}); choose another --out folder") from None
    path = root / "driver.lock"
    with open(path, "a+") as file:
        if not _taken(file.fileno()):
            file.seek(0)
            raise LockedError(root, file.read().strip() or "another process")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _taken(descriptor: int) -> bool:
    """Try to lock for `PATIENCE` seconds; whether it worked."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def driver_lives(root: Place) -> bool:
    """Whether a sweep holds a job's folder; looks without making or taking a lock."""
    if isinstance(root, Url):
        _, holder = newest(objects := RemoteObjects(root))
        return holder is not None and lives(objects, holder)
    try:
        with open(root / "driver.lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
