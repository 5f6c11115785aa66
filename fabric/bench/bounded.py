"""Memory of all processes, Ray's and its object store included, while a token cache is built from a large text."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from fabric.bench.cache import plays
from fabric.bench.measure import Figure, Measured, Sample, Setting
from fabric.bench.process import Child
from fabric.planning.machine import cpu_count

CHOICES = ("1GB", "10GB")
BYTES = {"1GB": 10**9, "10GB": 10**10}
QUICK_BYTES = 60_000_000
TARGET_GB = 2.0
LOOK_EVERY = 0.5  # seconds


def run(setting: Setting) -> Measured:
    """Shakespeare's plays again and again, by paragraphs: the smallest documents, and so the largest index.

    The tokenizer is the bytes': memory is asked for, not speed. A process's memory is its proportional set size, so
    that what processes share counts once. Without `only`, the smaller size.
    """
    figures: dict[str, Figure] = {}
    largest: dict[str, dict[str, float]] = {}
    for size in setting.only or CHOICES[:1]:
        n_bytes = QUICK_BYTES if setting.quick else BYTES[size]
        found = [_measured(setting, n_bytes) for _ in range(setting.repeats)]
        peaks = Sample(tuple(f["peak"] / 1e9 for f in found))
        note = f"{n_bytes / 1e9:g} GB, {found[0]['documents']:,} documents, {found[0]['seconds']:.0f} s"
        largest[size] = found[-1]["processes"]
        figures[f"highest, {size}"] = Figure(peaks.median, "GB", {"peak": peaks}, ("<=", TARGET_GB), note)
    return Measured(figures, f"{cpu_count()} processes of one", {"processes": largest})


def _measured(setting: Setting, n_bytes: int) -> dict[str, Any]:
    setting.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fabric-bounded-", dir=setting.out) as folder:
        text = Path(folder, "text.txt")
        setting.say(f"writing {n_bytes / 1e9:g} GB")
        write_plays(text, n_bytes)
        task = {"text": str(text), "folder": f"{folder}/cache", "n": cpu_count()}
        with Child("fabric.bench.bounded:build", task) as child, Watch(child.pid) as watch:
            found: dict[str, Any] = child.ask()
        setting.say(f"{found['seconds']:.0f} s, at most {watch.peak / 1e9:.2f} GB")
        return {**found, "peak": watch.peak, "processes": watch.processes}


def write_plays(file: Path, n_bytes: int) -> None:
    """The plays one after the other, as often as it takes."""
    whole = "\n\n".join(plays()).encode() + b"\n\n"
    with file.open("wb") as out:
        while out.tell() < n_bytes:
            out.write(whole)


def build(text: str, folder: str, n: int) -> Generator[dict[str, Any], Any, None]:
    """A cache built by Ray Data in a process of its own.

    Workers have imported what a block's task needs, as on a cluster that is joined; those of a sweep's own Ray have
    torch loaded for the trials that follow.
    """
    os.environ |= {"RAY_preload_python_modules": "fabric.data.blocks"}
    from fabric.data import DataConfig, prepare
    from fabric.runtime.connect import cluster

    corpus = {"kind": "files", "path": text, "documents": "blank_line"}
    config = DataConfig.model_validate({"corpus": corpus, "tokenizer": "bytes", "seq_len": 256})
    with cluster(None, n):
        yield {}
        began = time.perf_counter()
        cache = prepare(config, folder, backend="ray")
        seconds = time.perf_counter() - began
        documents = sum(entry["n_documents"] for entry in cache.manifest["splits"].values())
        shutil.rmtree(folder)
        yield {"seconds": seconds, "documents": documents}


class Watch:
    """The highest memory of a process and its descendants while the block runs, in bytes; and whose it was, in GB."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak = pid, 0
        self.processes: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            found = {pid: proportional_bytes(pid) for pid in family(self.pid)}
            if (total := sum(found.values())) > self.peak:
                self.peak = total
                self.processes = {f"{pid} {_title(pid)}": round(n / 1e9, 3) for pid, n in found.items()}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def family(pid: int) -> set[int]:
    """A process and its descendants."""
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has just ended
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _title(pid: int) -> str:
    """How a process is called."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    return " ".join(word.rpartition("/")[2] for word in words)[:60].strip()


def proportional_bytes(pid: int) -> int:
    """A process's proportional set size: of what it shares with n others, an n-th; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
