"""Real sweeps, each a process of its own, killed, interrupted and starved: the same command finishes them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_kit import left_behind, nodes
from drill_kit import (
    FIFO,
    ROOT,
    SYNC_ASHA,
    Ledger,
    Sweep,
    assert_honest,
    decision,
    descendants,
    gone,
    job,
    kill_ray,
    losses,
    n_finished,
    ray_of,
    resumed,
    running,
    states,
    sweeping,
    table,
    two_phases,
    write_job,
)

import fabric
from fabric.results import status
from fabric.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow]
GOES_ON = "the same command goes on"


def assert_same(done: Path, whole: Path) -> None:
    """Losses and final table equal an undisturbed run's, bit for bit."""
    assert losses(Store(done)) == losses(Store(whole))
    assert table(done) == table(whole)


def decoys(folder: Path) -> Path:
    """A user's folder with packages named like ours."""
    for name in ("models", "fabric", "kernels"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('the decoy {name} was imported')\n")
    return folder


# -- kill -9: a worker, the driver, all of Ray ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Any:
    """One study under `asha: {sync: true}`, killed three times from a folder with decoys, then finished, and run
    once more."""
    folder = tmp_path_factory.mktemp("killed")
    body = job(folder, steps=90, search=two_phases(SYNC_ASHA, 1e-3, 3e-3))
    where = {"cwd": decoys(folder / "mine")}
    file, out, ledger = write_job(folder, body), folder / "runs", Ledger()
    with sweeping(file, out, **where) as first:
        first.until(lambda s: (s.root / "driver.lock").exists())
        with sweeping(file, out, **where) as second:  # while the first one starts Ray
            locked = SimpleNamespace(code=second.wait(60), stderr=second.stderr)
        victim, pid = first.until(lambda s: running(s) and running(s)[0])
        os.kill(pid, signal.SIGKILL)
        first.until(lambda s: decision(s, 0))
        ledger.look(first.store)
        family = descendants(first.pid, agents=False)
        first.kill()
        assert gone(family, 30), "Ray outlives its driver"
    ledger.look(first.store)
    assert_honest(first.root)
    with sweeping(file, out, **where) as next_one:
        next_one.until(lambda s: decision(s, 0) and running(s))
        ledger.look(next_one.store)
        kill_ray(next_one)
        lost = SimpleNamespace(code=next_one.wait(60), stderr=next_one.stderr)
    assert_honest(first.root)
    last = resumed(file, out, **where)
    ledger.look(last.store)
    n_runs = len(list((last.root / "tune").iterdir()))
    began = time.monotonic()
    again = resumed(file, out, **where)
    seconds = time.monotonic() - began
    ledger.look(last.store)
    rerun = SimpleNamespace(
        seconds=seconds, stdout=again.stdout, n_runs=len(list((last.root / "tune").iterdir())) - n_runs
    )
    whole = fabric.sweep(body, out=folder / "whole", runner="inline")
    return SimpleNamespace(
        victim=victim, locked=locked, lost=lost, last=last, rerun=rerun, whole=whole.root, root=last.root
    )


def test_killed_runs_end_with_the_table_of_an_undisturbed_one(killed):
    assert_same(killed.root, killed.whole)
    assert_honest(killed.root)
    assert len(Store(killed.root).trial(killed.victim).attempt_numbers()) >= 2
    assert "failed" not in states(Store(killed.root)).values()


def test_a_second_sweep_on_the_folder_says_who_holds_it(killed):
    assert killed.locked.code == 2
    assert "is in use by process" in killed.locked.stderr
    assert "Traceback" not in killed.locked.stderr


def test_a_sweep_whose_ray_dies_says_so(killed):
    assert killed.lost.code == 2
    assert GOES_ON in killed.lost.stderr
    assert "Traceback" not in killed.lost.stderr


def test_a_rerun_of_a_finished_sweep_starts_nothing(killed):
    assert killed.rerun.n_runs == 0, "no Tune run"
    assert killed.rerun.seconds < 30, "no Ray"
    assert killed.rerun.stdout == killed.last.stdout, "the same table"


def test_plain_lines_where_there_is_no_terminal(killed):
    assert killed.last.stdout.startswith("drill")
    lines = killed.last.stderr.splitlines()
    assert lines
    for line in lines:
        assert line.startswith(("[", "warning: ")), line
        assert not set(line) & set("╭│╰─█\x1b\r"), line
        assert "ray" not in line.lower().split() or line.endswith("] starting Ray"), line
        assert "WARNING" not in line, line


def test_tunes_own_tools_read_our_metrics_and_axes(killed):
    import ray
    from ray.tune import ExperimentAnalysis

    had_ray = ray.is_initialized()
    newest = max((killed.root / "tune").iterdir(), key=lambda p: int(p.name))
    frame = ExperimentAnalysis(str(newest)).dataframe()
    assert ray.is_initialized() == had_ray, "reading starts no Ray"
    assert len(frame) > 0
    columns = {"val_loss", "train_loss", "tokens", "step", "seconds", "test_loss"}
    axes = {f"config/{name}" for name in ("phase", "arm", "seed", "lr", "point", "trial", "role", "kind")}
    assert columns | axes <= set(frame.columns)
    # A trial that waits for its rung leaves Tune there, and comes back as a further Tune trial.
    trained = frame[frame["config/kind"] == "train"].sort_values("step").groupby("config/trial").tail(1)
    for _, row in trained.iterrows():
        final = Store(killed.root).trial(row["config/trial"]).status()
        assert final is not None
        if final.state == "finished":
            assert row["val_loss"] == (final.final or {})["val_loss"]


def test_module_form_of_the_command_with_decoys(tmp_path):
    """`python -m fabric.cli` puts the current folder first, which nothing of ours can undo; -P leaves it out."""
    command = [sys.executable, "-P", "-m", "fabric.cli", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=decoys(tmp_path / "mine"), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "sweep" in done.stdout


# -- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.drill
def test_signals_stop_cleanly_and_the_same_command_goes_on(tmp_path):
    body = job(tmp_path, steps=60, search=two_phases(FIFO))
    file, out, ledger = write_job(tmp_path, body), tmp_path / "runs", Ledger()

    def no_more(sweep: Sweep, family: list[int]) -> None:
        assert gone(family, 30), "processes are left"
        ledger.look(sweep.store)
        assert_honest(sweep.root)

    # While Ray starts: the terminal is closed.
    with sweeping(file, out) as run:
        run.until(lambda _: ray_of(run.pid)["gcs"])
        family = descendants(run.pid)
        os.kill(run.pid, signal.SIGHUP)
        assert run.wait(20) == 130, run.stderr
        assert GOES_ON in run.stderr
        assert gone(family, 30)
        assert not list(Path(tempfile.gettempdir()).glob(f"fabric-sweep-{run.pid}-*"))
    # While a trial trains: Ctrl-C goes to every process of the terminal's group.
    with sweeping(file, out) as run:
        run.until(lambda s: n_finished(s) and running(s))
        family = descendants(run.pid)
        began = time.monotonic()
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(40) == 130, run.stderr
        seconds = time.monotonic() - began
        assert GOES_ON in run.stderr
        assert decision(run.store, 0) is None, "no decision on the way out"
        no_more(run, family)
    assert seconds < 20
    # In the last phase, and once more for good.
    with sweeping(file, out) as run:
        run.until(lambda s: decision(s, 0) and running(s))
        family = descendants(run.pid, agents=False)
        os.kill(run.pid, signal.SIGTERM)
        time.sleep(0.2)
        os.kill(run.pid, signal.SIGTERM)
        assert run.wait(5) == 128 + signal.SIGTERM
        no_more(run, family)
    last = resumed(file, out)
    ledger.look(last.store)
    whole = fabric.sweep(body, out=tmp_path / "whole", runner="inline")
    assert_same(last.root, whole.root)


# -- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    where = tmp_path / "disk"
    where.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(where)]
    if shutil.which("mount") is None or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_full_disk_stops_the_sweep_and_loses_nothing(tmp_path, small_disk):
    body = job(tmp_path, search=two_phases(FIFO, 1e-3, 3e-3))
    file, ledger = write_job(tmp_path, body), Ledger()
    with sweeping(file, small_disk) as run:
        code = run.wait(120)
    assert code == 2, run.stderr
    assert "No space left on device" in run.stderr
    assert GOES_ON in run.stderr
    assert "Traceback" not in run.stderr
    ledger.look(run.store)
    assert_honest(run.root)
    assert ledger.attempts, "some trials had finished"
    assert not [s for s in status(run.root) if s.state == "failed" and "space" not in s.reason]
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    last = resumed(file, small_disk)
    ledger.look(last.store)
    whole = fabric.sweep(body, out=tmp_path / "whole", runner="inline")
    assert_same(last.root, whole.root)


# -- memory ---------------------------------------------------------------------------------------------------------


def test_a_worker_killed_for_memory_gets_half_the_micro_batch(tmp_path):
    """Ray's monitor kills at every use of memory; what is tried next is recorded, then the trial is given up."""
    search = {"mode": "grid", "seeds": 1, "axes": [{"arms": [{"name": "mha"}]}]}
    body = job(tmp_path, steps=4000, search=search, resources={"max_retries": 1})
    file, out = write_job(tmp_path, body), tmp_path / "runs"
    with sweeping(file, out, RAY_memory_usage_threshold="0.001") as run:
        code = run.wait(120)
    assert code == 1, run.stderr
    store = Store(run.root)
    (trial,) = store.trial_ids()
    (study,) = store.studies()
    decided = store.trial(trial).decisions(f"{study}-memory-")
    assert sorted(d["micro_batch_size"] for d in decided) == [1, 2]
    (said,) = status(run.root)
    assert said.state == "failed"
    assert "running low on memory" in said.reason
    assert [
        line for line in run.stderr.splitlines() if line.startswith("warning: ") and "low on memory" in line
    ]
    assert len(run.stderr.splitlines()) < 15, "a line an event"


# -- a cluster that is there already -----------------------------------------------------------------------------------


@pytest.fixture
def head():
    """A cluster of two CPUs, started by hand on loopback."""
    with nodes(0, head_cpus=2) as cluster:
        yield cluster


@pytest.mark.drill
def test_joining_a_cluster_leaves_nothing_on_it(tmp_path, head):
    search = {"mode": "grid", "seeds": 3, "axes": [{"arms": [{"name": "mha"}]}]}
    body = job(tmp_path, steps=60, search=search)
    file, out = write_job(tmp_path, body), tmp_path / "runs"
    where = {"cwd": decoys(tmp_path / "mine"), "RAY_AUTH_MODE": "disabled"}
    with sweeping(file, out, "--address", head.address, **where) as run:
        _, pid = run.until(lambda s: running(s) and running(s)[0], 120)
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        os.kill(run.pid, signal.SIGTERM)
        assert run.wait(60) == 130, run.stderr
    assert b"TUNE_FUNCTION_THREAD_TIMEOUT_S=60" in environment
    assert left_behind(head.address) == []
    with sweeping(file, out, "--address", head.address, **where) as last:
        assert last.wait(240) == 0, last.stderr
    assert left_behind(head.address) == []
    whole = fabric.sweep(body, out=tmp_path / "whole", runner="inline")
    assert_same(last.root, whole.root)
    # No room: a trial larger than the cluster.
    large = write_job(tmp_path, {**body, "resources": {"cpus_per_worker": 3}})
    with sweeping(large, tmp_path / "large", "--address", head.address, **where) as refused:
        assert refused.wait(60) == 2
    assert "no trial fits: 2 CPUs at 3 a trial" in refused.stderr
    # The cluster dies under a sweep.
    file = write_job(
        tmp_path, {**body, "base": {**body["base"], "train": {**body["base"]["train"], "tokens": "1M"}}}
    )
    with sweeping(file, out, "--address", head.address, **where) as run:
        run.until(running, 120)
        for pid in [*ray_of(head.pids[0])["gcs"], head.raylet(0)]:
            os.kill(pid, signal.SIGKILL)
        assert run.wait(55) == 2, run.stderr
    assert "Ray's head ended under the sweep" in run.stderr
    assert GOES_ON in run.stderr
