"""One driver a job on object storage, where nothing can be locked: numbered leases whose counter beats.

    <root>/driver/<n>.json     {"holder", "machine", "pid", "started", "token", "beat", "released"}

The largest number counts, and is taken by conditional create. The next one may be taken when the holder has released
its own, when its process is dead on this machine, or when its counter has stood still for `SILENT` seconds. A driver
that was taken for dead (it had lost its network) and finds a larger number writes nothing more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fabric.store.encoding import dump_json, read_record
from fabric.store.objects import Objects, StoreUnavailableError

BEAT, SILENT, LOOK = 5.0, 30.0, 1.0  # seconds
FOLDER = "driver"
_OURS: set[str] = set()  # tokens of the leases this process holds


class LockedError(RuntimeError):
    """Another live process drives the job."""

    def __init__(self, root: object, holder: object) -> None:
        super().__init__(
            f"{root} is in use by {holder}. Wait for it, stop it, or choose another --out folder."
        )


class Lease:
    """A driver's claim on a job; `is_lost` once another driver has taken over."""

    def __init__(self, objects: Objects, number: int) -> None:
        self.objects, self.number = objects, number
        self.key = f"{FOLDER}/{number:06d}.json"
        self.is_lost = False
        self._beat = 0
        self._token = uuid.uuid4().hex
        self._who = {
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "token": self._token,
        }

    def _body(self, released: bool = False) -> bytes:
        return dump_json({**self._who, "beat": self._beat, "released": released})

    def take(self) -> bool:
        """Whether the number is ours now, and the largest."""
        _OURS.add(self._token)
        taken = self.objects.create(self.key, self._body())
        if not taken:  # or the answer was lost, and asked for again
            taken = (read_record(self.objects, self.key) or {}).get("token") == self._token
        if taken and newest(self.objects)[0] == self.number:
            return True
        _OURS.discard(self._token)
        return False

    def beat(self) -> None:
        """Say that we live, unless another driver has a larger number."""
        self.is_lost = self.is_lost or newest(self.objects)[0] > self.number
        if not self.is_lost:
            self._beat += 1
            self.objects.put(self.key, self._body())

    def release(self) -> None:
        _OURS.discard(self._token)
        if not self.is_lost:
            self.objects.put(self.key, self._body(released=True))

    def creates_twice(self) -> bool:
        """Whether the store writes what exists, though it was told not to."""
        return self.objects.create(self.key, self._body())

    def drop_older(self) -> None:
        for key in self.objects.list(FOLDER):
            if _number(key) < self.number:
                self.objects.delete(key)


class Held:
    """A job's objects for its driver: nothing is written any more once another driver has taken over."""

    def __init__(self, objects: Objects, lease: Lease, root: object) -> None:
        self._objects, self._lease, self._root = objects, lease, root

    def _check(self) -> None:
        if self._lease.is_lost:
            raise StoreUnavailableError(
                errno.EBUSY,
                f"another driver has taken over {self._root}, because this one was silent for {SILENT:.0f} s "
                "(a lost network?). This one stops; nothing recorded is lost",
            )

    def put(self, key: str, data: bytes) -> None:
        self._check()
        self._objects.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        self._check()
        return self._objects.create(key, data)

    def get(self, key: str) -> bytes | None:
        return self._objects.get(key)

    def list(self, prefix: str) -> list[str]:
        return self._objects.list(prefix)

    def delete(self, prefix: str) -> None:
        self._check()
        self._objects.delete(prefix)


@contextmanager
def leased(objects: Objects, root: object) -> Iterator[Objects]:
    """Hold the lease of a job while the block runs, and yield the job's objects.

    Raises LockedError where a living driver has it, StoreUnavailableError where conditional writes are not honoured.
    """
    lease = _taken(objects, root)
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(lease, over), daemon=True)
    beating.start()
    try:
        if lease.creates_twice():
            raise StoreUnavailableError(
                errno.ENOTSUP,
                f"{root} overwrites an object that exists when it is told not to (If-None-Match: *): records need a "
                "store that honours conditional writes, such as S3 itself",
            )
        lease.drop_older()
        yield Held(objects, lease, root)
    finally:
        over.set()
        beating.join()
        with contextlib.suppress(StoreUnavailableError):  # out of reach, it falls silent by itself
            lease.release()


def _taken(objects: Objects, root: object) -> Lease:
    while True:
        number, holder = newest(objects)
        if holder is not None and lives(objects, holder):
            raise LockedError(root, holder.get("holder"))
        if (lease := Lease(objects, number + 1)).take():
            return lease


def _beat(lease: Lease, over: threading.Event) -> None:
    while not over.wait(BEAT) and not lease.is_lost:
        with contextlib.suppress(StoreUnavailableError):  # the next beat may get through
            lease.beat()


def newest(objects: Objects) -> tuple[int, dict[str, Any] | None]:
    """The largest number there is (0: none), and what is written there; None where it is damaged."""
    number = max((_number(key) for key in objects.list(FOLDER)), default=0)
    return number, read_record(objects, f"{FOLDER}/{number:06d}.json") if number else None


def _number(key: str) -> int:
    name = key.rsplit("/", 1)[1].removesuffix(".json")
    return int(name) if name.isdecimal() else 0


def lives(objects: Objects, holder: Mapping[str, Any]) -> bool:
    """Whether a lease's holder still drives; of one on another machine that takes up to `SILENT` seconds to see."""
    if holder.get("released"):
        return False
    if _machine() is not None and holder.get("machine") == _machine():
        if holder.get("pid") == os.getpid() and holder.get("token") not in _OURS:
            return False  # it could not be released: the store was out of reach
        return _started(holder.get("pid")) == holder.get("started")
    said = f"looking for up to {SILENT:.0f} s whether {holder.get('holder')} still drives this sweep"
    warnings.warn(said, RuntimeWarning, stacklevel=2)
    deadline = time.monotonic() + SILENT
    while time.monotonic() < deadline:
        time.sleep(LOOK)
        _, now = newest(objects)
        if now is None or now.get("released"):
            return False
        if (now.get("token"), now.get("beat")) != (holder.get("token"), holder.get("beat")):
            return True
    return False


def _machine() -> str | None:
    """This boot of this machine, and this container's process ids in it; None where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: object) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None where there is none that lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
