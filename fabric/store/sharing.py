"""What every machine of a sweep needs a copy of (token caches, starting weights), where they share no folder.

    <out>/.cache/<name>/…             a cache's files
    <out>/.cache/<name>/files.json    {name: sha256}, written last: the copy is there when this is

A machine that has no such cache fetches it once, into its user's own cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from pathlib import Path

from fabric.store.encoding import dump_json, read_record
from fabric.store.place import Place, Url
from fabric.store.remote import RemoteObjects

LISTING = "files.json"


def share(out: Place, cache: Path, name: str) -> None:
    """Put a folder of the cache beside the records at a URL, once; a local `out` holds it already."""
    if not isinstance(out, Url):
        return
    objects = RemoteObjects(out / ".cache")
    if read_record(objects, f"{name}/{LISTING}") is not None:
        return
    files = sorted(p for p in (cache / name).iterdir() if p.is_file())
    for file in files:
        objects.upload(file, f"{name}/{file.name}")
    objects.put(f"{name}/{LISTING}", dump_json({p.name: _sha256(p) for p in files}, indent=1))


def fetch(out: Place, cache: Path, name: str) -> None:
    """Bring a shared folder into this machine's cache, where it is not there; nothing happens when none is shared.

    Raises ValueError when a file did not arrive as it was sent.
    """
    if not isinstance(out, Url) or (cache / name).is_dir():
        return
    objects = RemoteObjects(out / ".cache")
    if (files := read_record(objects, f"{name}/{LISTING}")) is None:
        return
    new = (cache / name).parent / f".fetching-{uuid.uuid4().hex[:12]}"
    new.mkdir(parents=True)
    try:
        for file, digest in files.items():
            objects.download(f"{name}/{file}", new / file)
            if _sha256(new / file) != digest:
                raise ValueError(f"{objects.root}/{name}/{file} is damaged: delete {objects.root}/{name}")
        with contextlib.suppress(OSError):  # another process of this machine was first
            os.rename(new, cache / name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
