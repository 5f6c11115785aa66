"""Clusters that ask for a token, and their job servers; clusters that grow while trials wait."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_kit import free_port, left_behind, nodes
from drill_kit import GQA, ROOT, job, losses, sweeping, table, write_job

import fabric
from fabric.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.drill]
ARMS = [{"name": "mha"}, {"name": "gqa", "set": GQA}]


@pytest.fixture
def a_study(tmp_path):
    """Two trials, their job file, and what they end with in one process."""
    body = job(tmp_path, steps=24, search={"mode": "grid", "seeds": 1, "axes": [{"arms": ARMS}]})
    whole = fabric.sweep(body, out=tmp_path / "whole", runner="inline")
    return body, write_job(tmp_path, body), whole.root


def assert_same(root, whole):
    assert losses(Store(root)) == losses(Store(whole))
    assert table(root) == table(whole)


def test_a_job_server_that_asks_for_a_token_trains_what_is_submitted(tmp_path, a_study):
    _, file, whole = a_study
    token, port = tmp_path / "token", free_port()
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o644)
    with_token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    home = {"HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token"}
    with nodes(0, head_cpus=2, dashboard=port, **with_token) as cluster:
        with sweeping(file, tmp_path / "runs", "--address", cluster.address, **home) as refused:
            assert refused.wait(60) == 2
        assert "asks for a token" in refused.stderr
        assert "Traceback" not in refused.stderr

        def submit(out, **environment):
            command = [sys.executable, "-P", "-m", "fabric.cli", "submit", str(file), "--wait"]
            command += ["--address", f"http://127.0.0.1:{port}", "--out", str(tmp_path / out)]
            clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
            clean |= {"PYTHONPATH": str(ROOT), **environment}
            return subprocess.run(command, capture_output=True, text=True, env=clean, timeout=300)

        refused = submit("nothing", **home)
        assert refused.returncode == 2, refused.stderr
        assert "token" in refused.stderr
        assert "Traceback" not in refused.stderr
        done = submit("submitted", **with_token)
        assert done.returncode == 0, done.stderr
        assert_same(tmp_path / "submitted" / "drill", whole)
        # Ray's own command, where the nodes have fabric installed.
        only_the_job = tmp_path / "working"
        only_the_job.mkdir()
        shutil.copy(file, only_the_job / "job.yaml")
        command = [
            str(Path(sys.executable).parent / "ray"),
            "job",
            "submit",
            "--working-dir",
            str(only_the_job),
        ]
        command += ["--address", f"http://127.0.0.1:{port}", "--", "fabric", "sweep", "job.yaml"]
        command += ["--address", "auto", "--out", str(tmp_path / "plain")]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
        done = subprocess.run(
            command, capture_output=True, text=True, env={**clean, **with_token}, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert_same(tmp_path / "plain" / "drill", whole)
        with sweeping(file, tmp_path / "joined", "--address", cluster.address, **with_token) as joined:
            assert joined.wait(240) == 0, joined.stderr
        assert_same(joined.root, whole)
    assert token.stat().st_mode & 0o777 == 0o600, "others could read it"


def test_a_cluster_without_a_cpu_grows_by_the_trials_that_wait(tmp_path, a_study):
    body, file, whole = a_study
    growing = {"growth": 2, "RAY_AUTH_MODE": "disabled"}
    with nodes(0, **growing) as cluster:
        with sweeping(
            file, tmp_path / "no", "--address", cluster.address, RAY_AUTH_MODE="disabled"
        ) as refused:
            assert refused.wait(60) == 2
        assert "set resources.max_concurrent if the cluster grows" in refused.stderr
        asking = write_job(tmp_path, {**body, "resources": {"max_concurrent": 2}})
        with sweeping(
            asking, tmp_path / "runs", "--address", cluster.address, RAY_AUTH_MODE="disabled"
        ) as run:
            assert run.wait(300) == 0, run.stderr
        assert_same(run.root, whole)
        assert left_behind(cluster.address) == []
