"""File helpers of the data room: hashing with a memo, atomic writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

MEMO_BYTES = 1 << 20  # smaller files are hashed in less time than their memo takes to read


def canonical_json(value: Any) -> str:
    """One spelling of a JSON value; raises TypeError or ValueError on anything JSON does not know."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    """sha256 (hex) of a JSON value's canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def beside(path: Path, purpose: str) -> Path:
    """A new name in `path`'s folder, to build under before a rename (permissions as usual)."""
    return path.parent / f".{purpose}-{path.name[:16]}-{uuid.uuid4().hex[:12]}"


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = beside(path, "writing")
    try:
        with temp.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def remembered_sha256(path: Path, cache_root: Path) -> str:
    """sha256 of a file, remembered in `<cache_root>/hashes` under (path, size, mtime_ns, ctime_ns).

    A file changed within the last two seconds is not remembered: a second change could keep the same stamp.
    The memo only saves time, so an unwritable cache folder is no error.
    """
    stat = path.stat()
    if stat.st_size < MEMO_BYTES:
        return sha256_of_file(path)
    stamp = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    memo = cache_root / "hashes" / f"{sha256_of(stamp)[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memo.read_text())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    digest = sha256_of_file(path)
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > 2_000_000_000:
        with contextlib.suppress(OSError):
            write_atomic(memo, canonical_json({"stamp": stamp, "sha256": digest}).encode())
    return digest
