"""The five operations run records are made of: put, create-if-absent, get, list, delete.

Every write is of a whole object and atomic: a reader sees the old object or the new one, never a part. This is what
object storage offers too, so the layout above works there unchanged.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class StoreUnavailableError(OSError):
    """Where a store keeps its records nothing can be written (a full, read-only disk) or reached (an object store).

    No trial is to blame.
    """

    def __str__(self) -> str:
        return str(self.strerror or super().__str__())


@contextmanager
def told_when_full(root: Path) -> Iterator[None]:
    """Turn the system's word for a full disk into one that says which, and what to do. Raises StoreUnavailableError."""
    try:
        yield
    except StoreUnavailableError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        what = (
            f"{os.strerror(error.errno)}: nothing more can be written below {root}. Nothing recorded is lost"
        )
        raise StoreUnavailableError(
            error.errno, f"{what}; make room, then the same command goes on"
        ) from None


class Objects(Protocol):
    """Whole-object storage under one root; keys are slash-separated relative paths."""

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object, atomically."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only if it does not exist; False when it did (then nothing changed)."""

    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None when there is none."""

    def list(self, prefix: str) -> list[str]:
        """The names of all objects below a prefix, sorted."""

    def delete(self, prefix: str) -> None:
        """Remove an object, or all objects below a prefix; nothing happens when there are none."""


class LocalObjects:
    """Objects as files: a write goes to a temporary file, is flushed to disk, and is renamed or linked into place."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def _write_temporary(self, target: Path, data: bytes) -> Path:
        with told_when_full(self.root):
            return self._write_flushed(target, data)

    def _write_flushed(self, target: Path, data: bytes) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def put(self, key: str, data: bytes) -> None:
        target = self.root / key
        temporary = self._write_temporary(target, data)
        with told_when_full(self.root):
            os.replace(temporary, target)

    def create(self, key: str, data: bytes) -> bool:
        target = self.root / key
        if target.exists():
            return False
        temporary = self._write_temporary(target, data)
        try:
            with told_when_full(self.root):
                os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def get(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def list(self, prefix: str) -> list[str]:
        base = self.root / prefix
        if not base.is_dir():
            return []
        found = []
        for folder, folders, names in os.walk(base):
            folders[:] = [f for f in folders if not f.endswith(".tmp")]  # a deletion that was cut short
            found += [
                os.path.relpath(os.path.join(folder, name), self.root)
                for name in names
                if not name.endswith(".tmp")
            ]
        return sorted(found)

    def delete(self, prefix: str) -> None:
        target = self.root / prefix
        if target.is_dir():
            # Renamed first, so that a reader never meets half a checkpoint.
            doomed = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
            os.replace(target, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)


class Nowhere:
    """Objects that are dropped as they are written."""

    def put(self, key: str, data: bytes) -> None:
        """Nothing."""

    def create(self, key: str, data: bytes) -> bool:
        return True

    def get(self, key: str) -> bytes | None:
        return None

    def list(self, prefix: str) -> list[str]:
        return []

    def delete(self, prefix: str) -> None:
        """Nothing."""
