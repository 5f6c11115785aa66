"""A store at one moment, for readers that look at all of it: one listing, and each object is read once."""

from __future__ import annotations

from fabric.store.objects import Objects


class Snapshot:
    """Objects as a single listing found them; nothing is written through it."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._keys = dict.fromkeys(objects.list(""))
        self._read: dict[str, bytes | None] = {}

    def get(self, key: str) -> bytes | None:
        if key in self._keys and key not in self._read:
            self._read[key] = self._objects.get(key)
        return self._read.get(key)

    def list(self, prefix: str) -> list[str]:
        folder = f"{prefix.strip('/')}/".lstrip("/")
        return [key for key in self._keys if key.startswith(folder)]

    def put(self, key: str, data: bytes) -> None:
        raise AssertionError(f"{key}: a snapshot is only read")

    def create(self, key: str, data: bytes) -> bool:
        raise AssertionError(f"{key}: a snapshot is only read")

    def delete(self, prefix: str) -> None:
        raise AssertionError(f"{prefix}: a snapshot is only read")
