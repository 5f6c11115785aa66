"""A cluster of several nodes on this machine, started by the commands of cluster/on-premise.yaml on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from drill_kit import ROOT, descendants, ray_of
from ranks_kit import free_port

FILE = ROOT / "cluster" / "on-premise.yaml"
# Ours, for nodes on one machine: small, quick to notice a death, no dashboard unless asked for, and one monitor of log
# files for all.
NODE = "--num-cpus=1 --include-log-monitor=false"
QUICK = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}


def start_command(kind: str) -> tuple[dict[str, str], list[str]]:
    """The environment and arguments of the file's `ray start` of a head or of a worker."""
    (line,) = (c for c in yaml.safe_load(FILE.read_text())[f"{kind}_start_ray_commands"] if "ray start" in c)
    words = shlex.split(line)
    begin = words.index("ray")
    return dict(w.split("=", 1) for w in words[:begin]), words[begin + 2 :]


LEFT = """
import json, sys, time, ray
from ray.util import placement_group_table
from ray._private.state import actors
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
deadline = time.monotonic() + 15
while True:
    groups = [g["state"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
    living = [a["ActorClassName"] for a in actors().values() if a["State"] != "DEAD"]
    living = [name for name in living if name != "_AutoscalingCoordinatorActor"]
    if not groups + living or time.monotonic() > deadline:
        break
    time.sleep(0.5)
print(json.dumps(groups + living))
"""


def left_behind(address: str) -> list[str]:
    """Placement groups and actors a cluster still holds, fifteen seconds after at the latest.

    Ray Data and Ray Train keep one actor without resources on a cluster for all jobs, which stays.
    """
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", LEFT, address]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(json.loads(done.stdout.strip().splitlines()[-1]))


class Nodes:
    """A head, without CPUs unless it is alone, and nodes of one CPU each; every one a `ray start --block`.

    With a `growth`, Ray's autoscaler starts up to so many further nodes of one CPU when something waits for one.
    """

    def __init__(
        self,
        n_nodes: int,
        *,
        head_cpus: int = 0,
        dashboard: int | None = None,
        growth: int = 0,
        **environment: str,
    ) -> None:
        self.port, self.folder = free_port(), tempfile.mkdtemp(prefix="fray")
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self.environment = {**QUICK, "PATH": path, **environment}
        self.address = f"127.0.0.1:{self.port}"
        own, arguments = start_command("head")
        arguments = [a for a in arguments if not a.startswith(("--port=", "--autoscaling-config="))]
        arguments += [f"--port={self.port}", f"--temp-dir={self.folder}", f"--num-cpus={head_cpus}"]
        arguments += ["--node-ip-address=127.0.0.1"]
        arguments += [f"--ray-client-server-port={free_port()}", "--object-store-memory=100000000"]
        arguments += [f"--dashboard-port={dashboard}"] if dashboard else ["--include-dashboard=false"]
        if growth:
            arguments.append(f"--autoscaling-config={self._autoscaling(growth)}")
            fake = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0"}
            self.environment |= {**fake, "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            self._start(own, arguments)
            for _ in range(n_nodes):
                self.add()
        except BaseException:
            self.end()
            raise

    def add(self) -> None:
        """One node more."""
        own, arguments = start_command("worker")
        address = next(a for a in arguments if a.startswith("--address="))
        assert re.fullmatch(r"--address=\$RAY_HEAD_IP:\d+", address), address
        arguments = [a for a in arguments if a != address]
        arguments += [f"--address={self.address}", "--node-ip-address=127.0.0.1", *NODE.split()]
        self._start(own, [*arguments, "--object-store-memory=100000000"])

    def _autoscaling(self, growth: int) -> Path:
        """Ray's provider of nodes that are processes of the head's machine."""
        unused = ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands")
        lists = (*unused, "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")
        config = {
            "cluster_name": "growing",
            "max_workers": growth,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.address,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {
                "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "node": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": growth},
            },
            "head_node_type": "head",
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 1,
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "rsync_exclude": [],
            "rsync_filter": [],
            "file_mounts_sync_continuously": False,
            **{name: [] for name in lists},
        }
        file = Path(self.folder, "autoscaling.yaml")
        file.write_text(yaml.safe_dump(config))
        return file

    def _start(self, own: dict[str, str], arguments: list[str]) -> None:
        log = Path(self.folder, f"start-{time.monotonic_ns()}.txt")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
        ray = [sys.executable, str(Path(sys.executable).parent / "ray"), "start", *arguments, "--block"]
        with open(log, "w") as file:
            environment = {**clean, **own, **self.environment}
            process = subprocess.Popen(ray, stdout=file, stderr=file, env=environment, start_new_session=True)
        self.processes.append(process)
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "a node does not start"
            time.sleep(0.1)

    @property
    def pids(self) -> list[int]:
        """Of every `ray start`."""
        return [p.pid for p in self.processes]

    @property
    def stands(self) -> bool:
        """Whether its head lives."""
        return self.processes[0].poll() is None

    def raylet(self, node: int) -> int:
        """The raylet of a node; 0 is the head."""
        (pid,) = ray_of(self.pids[node])["raylet"]
        return pid

    def drain(self, node: int, seconds: int) -> None:
        """Give notice that a node will be taken away; Ray ends it when the time is up."""
        words = Path(f"/proc/{self.raylet(node)}/cmdline").read_bytes().decode().split("\0")
        (name,) = (w.partition("=")[2] for w in words if w.startswith("--node_id="))
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a drill"]
        command = [sys.executable, str(Path(sys.executable).parent / "ray"), "drain-node", *reason]
        command += [
            "--address",
            self.address,
            "--node-id",
            name,
            "--deadline-remaining-seconds",
            str(seconds),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **self.environment})
        assert done.returncode == 0, done.stderr

    def kill(self, *nodes: int) -> None:
        """SIGKILL to all of some nodes' processes."""
        for node in nodes:
            for pid in [self.pids[node], *descendants(self.pids[node])]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.processes[node].wait(10)

    def end(self) -> None:
        """Nothing of it is left, whatever was killed before."""
        self.kill(*range(len(self.processes)))
        for entry in Path(
            "/proc"
        ).iterdir():  # orphans of killed raylets, by the folder they were started with
            with contextlib.suppress(OSError, ValueError):
                if entry.name.isdigit() and self.folder.encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def nodes(n_nodes: int, **settings: Any) -> Iterator[Nodes]:
    """A cluster that is gone when the block ends."""
    cluster = Nodes(n_nodes, **settings)
    try:
        yield cluster
    finally:
        cluster.end()
