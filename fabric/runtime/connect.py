"""Starting or joining a Ray cluster, quietly, and leaving nothing behind."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGES = ("fabric", "models", "kernels")
# Set before Ray starts, so that its workers inherit them.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # reading the test split reports no validation loss
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "RAY_preload_python_modules": "torch,fabric.runtime.worker",
    "RAY_memory_monitor_refresh_ms": "250",
}
OBJECT_STORE_BYTES = 200 * 2**20


def source_hash() -> str:
    """A hash of our three packages' sources: the driver and its workers must run the same code."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def cluster(address: str | None, n_cpus: int, n_gpus: float = 0) -> Iterator[dict[str, Any]]:
    """Run the block inside a Ray cluster and yield its resources.

    Without an address, a cluster of this machine's own is started and ended with the block (no dashboard, no runtime
    environment: that would bypass the workers that have torch loaded). With one, it is joined; our packages travel
    as `py_modules` unless this process is itself a submitted job, whose environment is the job's.
    """
    import ray

    joined = ray.is_initialized()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not joined:
        staged = tempfile.TemporaryDirectory(prefix="fabric-", ignore_cleanup_errors=True)
        _start(address, n_cpus, n_gpus, Path(staged.name))
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        yield dict(ray.cluster_resources())
    finally:
        if not joined:
            ray.shutdown()
            staged.cleanup()


def _start(address: str | None, n_cpus: int, n_gpus: float, staged: Path) -> None:
    """Start Ray from an empty folder: Ray puts the current one on every worker's path, where a user's own `models/`
    would hide ours. The folder outlives the workers (MKL cannot load where the current directory is gone)."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    root = Path(__file__).resolve().parents[2]
    before = Path.cwd()
    os.chdir(staged)
    try:
        if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
            ray.init(address=address or "auto", **quiet)
        elif address:
            environment = {"py_modules": [str(root / p) for p in PACKAGES], "working_dir": str(staged)}
            ray.init(address=address, runtime_env=environment, **quiet)
        else:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            ray.init(
                num_cpus=n_cpus,
                num_gpus=n_gpus or None,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
    finally:
        os.chdir(before)


@contextmanager
def clean_stop(interrupt: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM (Slurm, Kubernetes, `ray job stop`) end a Tune run cleanly; a second one ends the process.

    Tune stops its trials and returns on SIGUSR1 as it does on SIGINT; our handlers first call `interrupt`, so that
    nobody takes the return for an end. To be entered after `ray.init`, which sets a handler of its own. Outside the
    main thread the caller's handlers stand.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = 0

    def handler(signum: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            os._exit(128 + signum)
        interrupt()
        signal.raise_signal(signal.SIGUSR1)

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until Tune has set its own
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
