"""What this machine has, and how many trials at once that allows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fabric.job.schema import ResourcesConfig

# What a sweep's workers import before they are given a trial: all that an actor and a first step need. torch's compiler
# is not among it (two seconds, 100 MB): a trial that compiles loads it.
WORKER_MODULES = ("torch", "ray.tune", "fabric.runtime.worker")
MEMORY_SHARE = 0.85  # of what is free is given to trials; the rest is Ray's, the driver's and the system's


@dataclass(frozen=True)
class Concurrency:
    """How many trials run at once, with how many threads each, and what limits it."""

    slots: int
    threads: int
    limit: str


def cpu_count() -> int:
    """CPUs this process may use: the affinity mask, cut by the control group's quota."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            n = min(n, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return n


def free_memory() -> int:
    """Bytes of memory a new process can take, within the control group's limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    info = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    free = info["MemAvailable"]
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return free


def gpu_count() -> int:
    """CUDA devices here; 0 without any."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def concurrency(
    resources: ResourcesConfig,
    peak_bytes: int,
    n_trials: int | None,
    cpus: float | None = None,
    gpus: float | None = None,
    data_cpus: int = 0,
) -> Concurrency:
    """The number of trials at once: the tightest of CPUs, GPUs, memory, the job's own limit and
    the trials there are (None: not known yet).

    `cpus` and `gpus` are a cluster's; without them this machine's are taken (memory is looked at only then). On a
    cluster the job's own limit is also what it is asked for: it may grow when trials wait. `data_cpus` are left to Ray
    Data. Raises ValueError when not even one trial fits.
    """
    here = cpus is None
    cpus = cpus if cpus is not None else cpu_count()
    threads = 1 if resources.cpus_per_worker == "auto" else resources.cpus_per_worker
    workers = resources.most
    kept = f", {data_cpus} of them left to Ray Data" if data_cpus else ""
    free_cpus = max(0.0, cpus - data_cpus)
    limits = {f"{cpus:g} CPUs at {threads * workers} a trial{kept}": int(free_cpus // (threads * workers))}
    if resources.gpus_per_worker:
        gpus = gpus if gpus is not None else gpu_count()
        each = resources.gpus_per_worker * workers
        limits[f"{gpus:g} GPUs at {each:g} a trial"] = int(gpus // each)
    if here and not resources.gpus_per_worker:
        free = int(free_memory() * MEMORY_SHARE)
        limits[f"{free / 2**30:.1f} GiB of memory at {peak_bytes / 2**30:.2f} a trial"] = free // max(
            1, peak_bytes
        )
    if resources.max_concurrent:
        limits["resources.max_concurrent"] = resources.max_concurrent
    if n_trials is not None:
        limits[f"{n_trials} trials"] = max(1, n_trials)
    limit, slots = min(limits.items(), key=lambda item: item[1])
    if resources.max_concurrent and not here:
        asked = min(resources.max_concurrent, max(1, n_trials or resources.max_concurrent))
        if slots < asked:
            slots, limit = asked, f"resources.max_concurrent, where the cluster grows; it has {limit}"
    if slots < 1:
        grows = "" if here else ", or set resources.max_concurrent if the cluster grows when trials wait"
        raise ValueError(f"no trial fits: {limit}; give each less, or use a larger machine{grows}")
    return Concurrency(slots, threads, limit)
