"""The folder a cache is built in: locked by whoever works on it, and taken over when its builder was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fabric.data.disk import beside

ABANDONED_SECONDS = 2 * 24 * 3600
WORK = "work"  # the subfolder of what is not part of the cache


@contextmanager
def building(final: Path) -> Iterator[Path]:
    """A folder beside `final` to build in: one that a killed build of the same cache left behind, or a new one.

    An error removes it; an interrupt leaves it for the same call to go on with.
    """
    folder, lock = _left_behind(final) or _new(final)
    try:
        yield folder
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)  # where another process had published the same first
    finally:
        os.close(lock)


def remove_abandoned(tokens: Path) -> None:
    """Delete what builds killed more than two days ago left behind."""
    for left in (found for kind in ("building", "locking", "damaged") for found in tokens.glob(f".{kind}-*")):
        places = [left, left / WORK, left / WORK / "parts"]
        newest = max((f.stat().st_mtime for f in places if f.exists()), default=time.time())
        if time.time() - newest > ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _new(final: Path) -> tuple[Path, int]:
    folder, hidden = beside(final, "building"), beside(final, "locking")
    (hidden / WORK).mkdir(parents=True)
    lock = os.open(hidden / WORK / "lock", os.O_RDWR | os.O_CREAT)
    with contextlib.suppress(OSError):  # a file system without locks: then nothing is taken over
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.rename(hidden, folder)  # locked before anybody sees it
    return folder, lock


def _left_behind(final: Path) -> tuple[Path, int] | None:
    for folder in sorted(final.parent.glob(f".building-{final.name[:16]}-*")):
        with contextlib.suppress(OSError):
            lock = os.open(folder / WORK / "lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where its builder lives
                if (folder / WORK / "lock").exists():  # else it was published just now
                    return folder, lock
            except OSError:
                os.close(lock)
                raise
            os.close(lock)
    return None
