"""What this machine has, and how many trials at once that allows."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
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
    nodes: Sequence[Mapping[str, float]] | None = None,
    data_cpus: int = 0,
) -> Concurrency:
    """The number of trials at once: the tightest of CPUs, GPUs, memory, the job's own limit and
    the trials there are (None: not known yet).

    `nodes` are a cluster's, each with its CPU and GPU; without them this machine's are taken (memory is looked at only
    then). A worker needs all it asks for on one node; a trial's workers may be on several. On a cluster the job's own
    limit is also what it is asked for: it may grow when trials wait. `data_cpus` are left to Ray Data; no more than
    fits is asked for then, since waiting trials would take those too. Raises ValueError when not even one trial fits.
    """
    here = nodes is None
    if nodes is None:
        nodes = [{"CPU": cpu_count(), "GPU": gpu_count() if resources.gpus_per_worker else 0}]
    threads = 1 if resources.cpus_per_worker == "auto" else resources.cpus_per_worker
    workers, gpus_each = resources.most, resources.gpus_per_worker
    kept = f", {data_cpus} of them left to Ray Data" if data_cpus else ""
    each = {"CPU": float(threads)}
    limits = {f"{_held(nodes, 'CPU')} at {threads * workers} a trial{kept}": fitting(nodes, each, data_cpus)}
    if gpus_each:
        words = f"{_held(nodes, 'GPU')} at {gpus_each * workers:g} a trial"
        limits[words] = fitting(nodes, {**each, "GPU": gpus_each}, data_cpus)
    limits = {words: n // workers for words, n in limits.items()}
    if here and not gpus_each:
        free = int(free_memory() * MEMORY_SHARE)
        limits[f"{free / 2**30:.1f} GiB of memory at {peak_bytes / 2**30:.2f} a trial"] = free // max(
            1, peak_bytes
        )
    if resources.max_concurrent:
        limits["resources.max_concurrent"] = resources.max_concurrent
    if n_trials is not None:
        limits[f"{n_trials} trials"] = max(1, n_trials)
    limit, slots = min(limits.items(), key=lambda item: item[1])
    may_grow = not here and not data_cpus
    if resources.max_concurrent and may_grow:
        asked = min(resources.max_concurrent, max(1, n_trials or resources.max_concurrent))
        if slots < asked:
            slots, limit = asked, f"resources.max_concurrent, where the cluster grows; it has {limit}"
    if slots < 1:
        grows = ", or set resources.max_concurrent if the cluster grows when trials wait" if may_grow else ""
        larger = "a larger machine" if here else "larger nodes, or more of them"
        raise ValueError(f"no trial fits: {limit}; give each less, or use {larger}{grows}")
    return Concurrency(slots, threads, limit)


def _held(nodes: Sequence[Mapping[str, float]], what: str) -> str:
    """In words, how many CPUs or GPUs there are, and where."""
    amounts = [node.get(what, 0.0) for node in nodes]
    spread = f" (at most {max(amounts):g} on one node)" if len(amounts) > 1 else ""
    return f"{sum(amounts):g} {what}s{spread}"


def fitting(nodes: Sequence[Mapping[str, float]], each: Mapping[str, float], data_cpus: int = 0) -> int:
    """Workers that fit, each whole on one node, beside `data_cpus` CPUs on any."""
    fits = [min(int(node.get(what, 0.0) / n + 1e-9) for what, n in each.items()) for node in nodes]
    left = sum(int(node.get("CPU", 0.0) - n * each["CPU"]) for node, n in zip(nodes, fits, strict=True))
    given_up = math.ceil(max(0, data_cpus - left) / each["CPU"])
    return max(0, sum(fits) - given_up)
