"""One driver a job folder: a second one is told who holds it and stops."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 0.5  # seconds; `fabric status` holds the lock for an instant to see whether a driver lives


class LockedError(RuntimeError):
    """Another live process holds the folder."""


@contextmanager
def driver_lock(root: Path) -> Iterator[None]:
    """Hold `<root>/driver.lock` while the block runs; the system lets go of it when the process dies.

    Raises LockedError, naming the holder, when another process has it; ValueError when there can be no such folder.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"{root} cannot be made a folder ({why}); choose another --out folder") from None
    path = root / "driver.lock"
    with open(path, "a+") as file:
        if not _taken(file.fileno()):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise LockedError(
                f"{root} is in use by {holder}. Wait for it, stop it, or choose another --out folder."
            )
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
