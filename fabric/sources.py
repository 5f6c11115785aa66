"""Our own sources: where they lie, and a hash that tells whether two processes run the same."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

PACKAGES = ("fabric", "models", "kernels")


def package_folder(package: str) -> Path:
    """Where this process has one of our packages; on a joined cluster's workers each lies in a folder of its own."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    assert folders, f"{package} is no package here"
    return Path(next(iter(folders)))


def source_hash() -> str:
    """A hash of our three packages' sources: the driver and its workers must run the same code."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        folder = package_folder(package)
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".cpp", ".h")):
            name = f"{package}/{path.relative_to(folder).as_posix()}"
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
