"""Kubernetes manifests for KubeRay: a cluster of GPU and CPU workers, and a job file to run on it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from fabric.job.load import Job, load_job
from fabric.paths import check_shared, elsewhere
from fabric.planning.study import Machine, Study
from fabric.store import Store

JOB_FOLDER, SHARED_FOLDER = "/jobs", "/shared"
LARGEST_JOB = 1_000_000  # bytes: what a ConfigMap holds
PREFIX, LONGEST_NAME = "fabric-", 47  # of a RayJob, by KubeRay's own check
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60", "MALLOC_ARENA_MAX": "1"}


def raycluster_manifest(*, claim: str = "fabric-shared") -> dict[str, Any]:
    """A `RayCluster`: a head without trials, CPU workers for data, GPU workers for trials, scaled as needed.

    `claim` names the PersistentVolumeClaim (ReadWriteMany) that all pods share for `--out`.
    """
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "fabric"},
        "spec": _cluster_spec(claim),
    }


def rayjob_manifests(
    job: str | Path,
    *,
    scale: str | None = None,
    overrides: Iterable[str] = (),
    out: str = f"{SHARED_FOLDER}/runs",
    claim: str = "fabric-shared",
) -> list[dict[str, Any]]:
    """A ConfigMap with the job file, and the `RayJob` that runs it on a cluster of its own.

    Raises JobError for a job that cannot be planned, ValueError for one too large for a ConfigMap.
    """
    overrides = list(overrides)
    loaded = sendable(job, scale, overrides, out)
    text = Path(job).read_text(encoding="utf-8")
    if len(text.encode()) > LARGEST_JOB:
        raise ValueError(
            f"{job} has {len(text.encode()):,} bytes, a ConfigMap holds {LARGEST_JOB:,}: shorten it"
        )
    name = f"{PREFIX}{_dns_name(loaded.name)}"
    command = ["fabric", "sweep", f"{JOB_FOLDER}/job.yaml", "--address", "auto", "--out", out]
    command += ["--scale", scale] if scale else []
    command += [part for override in overrides for part in ("--set", override)]
    configuration = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"job.yaml": text},
    }
    rayjob = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": shlex.join(command),
            # The same command goes on where a lost cluster left it.
            "backoffLimit": 3,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60,
            "rayClusterSpec": _cluster_spec(claim, job_map=name),
        },
    }
    return [configuration, rayjob]


def sendable(job: str | Path, scale: str | None, overrides: Iterable[str], out: str) -> Job:
    """A job that can run on a cluster to which only its file is sent, every arm of it checked.

    Raises JobError for mistakes in it, and for paths that would be others there; ValueError for such an `out`.
    """
    check_shared(out)
    with elsewhere(), TemporaryDirectory() as nothing:
        loaded = load_job(job, scale, overrides)
        Study(loaded, Store(Path(nothing)), lambda _: "0" * 64, Machine(), dry=True)
    return loaded


def as_yaml(*manifests: dict[str, Any]) -> str:
    """Manifests as one YAML stream."""
    return yaml.safe_dump_all(manifests, sort_keys=False, width=110)


def _dns_name(name: str) -> str:
    """A name Kubernetes takes: lower-case letters, digits and dashes; KubeRay's own suffixes need the rest."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[: LONGEST_NAME - len(PREFIX)].rstrip("-")


def _cluster_spec(claim: str, job_map: str | None = None) -> dict[str, Any]:
    return {
        "rayVersion": version("ray"),
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"idleTimeoutSeconds": 300},
        "headGroupSpec": {
            # On loopback nothing outside the pod could submit a job; KubeRay's own service asks the pod's address.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", "disable-usage-stats": "true"},
            "template": _pod("ray-head", {"cpu": "2", "memory": "8Gi"}, claim, job_map),
        },
        "workerGroupSpecs": [
            _workers("data", 1, 2, {"cpu": "8", "memory": "32Gi"}, claim),
            _workers("gpu", 1, 4, {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}, claim),
        ],
    }


def _workers(name: str, fewest: int, most: int, limits: dict[str, str], claim: str) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": most,
        "rayStartParams": {"disable-usage-stats": "true"},
        "template": _pod("ray-worker", limits, claim, None),
    }


def _pod(name: str, limits: dict[str, str], claim: str, job_map: str | None) -> dict[str, Any]:
    mounts = [{"name": "shared", "mountPath": SHARED_FOLDER}, {"name": "memory", "mountPath": "/dev/shm"}]
    volumes: list[dict[str, Any]] = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}},
    ]
    if job_map is not None:
        mounts.append({"name": "job", "mountPath": JOB_FOLDER})
        volumes.append({"name": "job", "configMap": {"name": job_map}})
    container = {
        "name": name,
        "image": f"experiment-fabric:{version('experiment-fabric')}",
        "env": [{"name": key, "value": value} for key, value in _SETTINGS.items()],
        "resources": {"requests": dict(limits), "limits": dict(limits)},
        "volumeMounts": mounts,
    }
    return {"spec": {"containers": [container], "volumes": volumes}}
