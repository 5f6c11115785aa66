"""`fabric submit`: a job file sent to a Ray cluster's job server; nothing but our packages and the file travels."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.clusters import sendable
from fabric.runtime.auth import asked_for_token, settle
from fabric.runtime.connect import ENVIRONMENT
from fabric.sources import PACKAGES, package_folder

ANSWER_WITHIN = 10.0  # seconds

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


def submit(
    job: str | Path,
    address: str,
    *,
    scale: str | None = None,
    overrides: Iterable[str] = (),
    out: str = "/shared/runs",
    wait: bool = False,
) -> str:
    """Run `fabric sweep JOB` on the cluster whose dashboard is at `address` (http://…); the submission's id.

    `out` is a folder that all of its nodes share. Raises JobError for a bad job before anything is sent, ValueError for
    an address of another kind, ConnectionError where no job server answers; with `wait`, RuntimeError when the sweep
    fails there.
    """
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise ValueError(
            f"{address} is no job server: give the dashboard's address, like http://HOST:8265 (HOST:6379 is what "
            "`fabric sweep --address` takes)"
        )
    overrides = list(overrides)
    sendable(job, scale, overrides, out)
    settle(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    command = ["python", "-P", "-m", "fabric.cli", "sweep", "job.yaml", "--address", "auto", "--out", out]
    command += ["--scale", scale] if scale else []
    command += [part for override in overrides for part in ("--set", override)]
    _answers(address)
    with asked_for_token(address):
        return _submitted(JobSubmissionClient(address), job, command, wait)


def _answers(address: str) -> None:
    """Raises ConnectionError where no job server of Ray's answers in time: Ray's own client would wait for ever."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=ANSWER_WITHIN) as answer:
            is_ray = "ray_version" in json.load(answer)
    except urllib.error.HTTPError as error:
        is_ray = error.code in (401, 403)  # it asks for a token
    except ValueError:
        is_ray = False
    except OSError as error:
        why = getattr(error, "reason", error)
        raise ConnectionError(
            f"{address}: no job server answers ({why}); give the dashboard's address, like http://HOST:8265"
        ) from None
    if not is_ray:
        raise ConnectionError(
            f"{address} is a server, but no Ray job server; give the dashboard's address, like http://HOST:8265"
        )


def _submitted(client: JobSubmissionClient, job: str | Path, command: list[str], wait: bool) -> str:
    from ray.job_submission import JobStatus

    with tempfile.TemporaryDirectory(prefix="fabric-submit-") as folder:
        shutil.copyfile(job, Path(folder, "job.yaml"))
        submission: str = client.submit_job(
            entrypoint=shlex.join(command),
            runtime_env={
                "working_dir": folder,
                "py_modules": [str(package_folder(p)) for p in PACKAGES],
                "env_vars": {
                    k: v for k, v in ENVIRONMENT.items() if k.startswith(("TUNE_", "MALLOC_", "RAY_AIR"))
                },
            },
        )
    if wait:
        while not (status := client.get_job_status(submission)).is_terminal():
            time.sleep(1)
        if status != JobStatus.SUCCEEDED:
            raise RuntimeError(f"{submission} ended as {status}: {client.get_job_logs(submission)[-2000:]}")
    return submission
