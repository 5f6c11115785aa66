"""Starting or joining a Ray cluster, quietly, and leaving nothing behind."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fabric.planning.machine import WORKER_MODULES
from fabric.runtime.auth import asked_for_token, settle
from fabric.runtime.signals import handlers_kept
from fabric.sources import PACKAGES, package_folder

ROOT = Path(__file__).resolve().parents[2]
# Set before Ray starts, so that its workers inherit them.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # reading the test split reports no validation loss
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # our searcher limits; Tune's one at a time opens slots one after another
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    # Each trial of an actor has a thread of its own. In glibc's arena of that thread it would leave its memory, never
    # given back, and count it in the next trials' peaks; blocks above 64 MiB would be mapped anew in each step.
    "MALLOC_ARENA_MAX": "1",
    "RAY_preload_python_modules": ",".join(WORKER_MODULES),
    "RAY_memory_monitor_refresh_ms": "250",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of a worker nobody waits for any more; its status has the traceback
}
# For a cluster of our own, which never comes back: its head is gone when it does not answer for this long.
OWN_CLUSTER = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_idle_worker_killing_time_threshold_ms": "3600000",  # the preloaded workers wait until there is data
    "RAY_worker_niceness": "0",  # at Ray's 15 whatever else the machine does comes first, also in what is measured
}
OBJECT_STORE_BYTES = 200 * 2**20
STAGED = "fabric-sweep-"  # + the driver's process id, in the system's temporary folder
HEAD_ASKED_EVERY, HEAD_SILENT = 2.0, 20.0  # seconds
LOOK_EVERY, GRACE = (
    0.5,
    6.0,
)  # seconds: between looks at Ray's processes; for the main thread to end by itself


class SourcesDifferError(ValueError):
    """A worker runs other sources than the driver: no result of it could be trusted."""


class ClusterLostError(ConnectionError):
    """Ray's own processes have died under a running sweep."""


@contextmanager
def cluster(address: str | None, n_cpus: int, n_gpus: int = 0) -> Iterator[list[dict[str, float]]]:
    """Run the block inside a Ray cluster and yield what each of its nodes has.

    Without an address, a cluster of this machine's own is started and ended with the block (no dashboard, no runtime
    environment: that would bypass the workers that have torch loaded). With one, it is joined; our packages travel
    as `py_modules` unless this process is itself a submitted job, whose environment is the job's.
    """
    import ray

    joined = ray.is_initialized()
    for name, value in {**ENVIRONMENT, **({} if address or joined else OWN_CLUSTER)}.items():
        os.environ.setdefault(name, value)
    if not joined:
        settle(address)
        _remove_abandoned()
        staged = tempfile.TemporaryDirectory(prefix=f"{STAGED}{os.getpid()}-", ignore_cleanup_errors=True)
        try:
            with handlers_kept(), asked_for_token(address):
                _start(address, n_cpus, n_gpus, Path(staged.name))
        except SystemExit as stopped:  # what Ray's own handler of SIGTERM makes of it
            raise KeyboardInterrupt from stopped
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a failed trial's traceback is in its status
    if address and not joined:
        _HEAD.watch(ray.get_runtime_context().gcs_address)
    over = threading.Event()
    if not joined:
        # What nodes say as they die (pages of their state) goes past logging to the terminal; we say it ourselves.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
        threading.Thread(target=_watch, args=(over,), daemon=True).start()
    try:
        yield node_resources()
    finally:
        over.set()
        _HEAD.address = None
        if not joined:
            ray.shutdown()
            staged.cleanup()


def node_resources() -> list[dict[str, float]]:
    """What each living node of the cluster has, by Ray's names: CPU, GPU, memory …"""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _start(address: str | None, n_cpus: int, n_gpus: int, staged: Path) -> None:
    """Start Ray from an empty folder: Ray puts the current one on every worker's path, where a user's own `models/`
    would hide ours. The folder outlives the workers (MKL cannot load where the current directory is gone)."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    before, paths = Path.cwd(), os.environ.get("PYTHONPATH")
    os.chdir(staged)
    try:
        if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
            ray.init(address=address or "auto", **quiet)
        elif address:
            # A running cluster's workers have not inherited our settings.
            own = {
                name: value for name, value in ENVIRONMENT.items() if name.startswith(("TUNE_", "MALLOC_"))
            }
            environment = {
                "py_modules": [str(package_folder(p)) for p in PACKAGES],
                "env_vars": own,
            }
            ray.init(address=address, runtime_env=environment, **quiet)
        else:
            # Workers find the packages where this process has them, also in a checkout that is not installed.
            os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([paths] if paths else [])])
            ray.init(
                address="local",  # whatever RAY_ADDRESS says
                num_cpus=n_cpus,
                num_gpus=n_gpus or None,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
    finally:
        os.chdir(before)
        if paths is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = paths


def lost_message(lost: list[str]) -> str:
    """What to say when Ray has died."""
    return (
        f"Ray's {' and '.join(lost)} ended under the sweep (killed, or out of memory?). No finished trial is lost; "
        "the same command goes on"
    )


def _watch(over: threading.Event) -> None:
    """End the process when Ray has died and the main thread has not noticed, because it waits for an answer of Ray's.

    Ray itself would end it some seconds later, without a word that helps.
    """
    while not over.wait(LOOK_EVERY):
        if (lost := lost_processes()) and not over.wait(GRACE):
            print(f"error: {lost_message(lost)}", file=sys.stderr, flush=True)
            os._exit(2)


def lost_processes() -> list[str]:
    """What of the cluster is gone: processes of our own one that have died; a joined one's head when it is silent."""
    from ray._private import worker

    node: Any = worker._global_node
    if node is None or not node.is_head():
        return ["head"] if _HEAD.is_lost() else []
    return [name for name, _ in node.dead_processes() if name in ("raylet", "gcs_server")]


class _Head:
    """Whether a joined cluster's head answers; it may be away for a while (a restart, a network)."""

    def __init__(self) -> None:
        self.address: tuple[str, int] | None = None
        self.answered = self.asked = 0.0

    def watch(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address = (host, int(port))
        self.answered = self.asked = time.monotonic()

    def is_lost(self) -> bool:
        """Asks every two seconds at most."""
        now = time.monotonic()
        if self.address is None or now - self.asked < HEAD_ASKED_EVERY:
            return False
        self.asked = now
        try:
            socket.create_connection(self.address, timeout=HEAD_ASKED_EVERY).close()
        except OSError:
            return time.monotonic() - self.answered > HEAD_SILENT
        self.answered = time.monotonic()
        return False


_HEAD = _Head()


def _remove_abandoned() -> None:
    """Remove the staged folders of sweeps that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{STAGED}*-*"):
        pid = folder.name.removeprefix(STAGED).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
