"""What breaks on a cluster: `python tests/runtime/cluster_drills.py --repeats 5` (an hour or so on two idle cores).

A head without CPUs and three nodes of one, a study of trials of two DeepSpeed workers, and one fault: kill -9 of a
rank, of the Tune actor that holds the ranks, of a node's raylet, of the head, of the whole cluster, a rank frozen
for longer than its group's patience, a node that is taken away with notice, storage that is read-only for twenty
seconds. Where the sweep ends, the same
command goes on, on a new cluster if need be. The final table must be that of an undisturbed run, bit for bit, and of no
trial more may be lost than what was trained since its last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster_kit import Nodes, left_behind, nodes
from drill_kit import (
    Ledger,
    Sweep,
    _table,
    assert_honest,
    descendants,
    job,
    losses,
    rates,
    running,
    sweeping,
    table,
    write_job,
)

from fabric.store import Store

STEPS, EVERY = 120, 10
PATIENCE = 8.0
RESOURCES = {"workers": 2, "engine": "deepspeed", "zero_stage": 2, "patience_seconds": PATIENCE}
JOINED = {"RAY_AUTH_MODE": "disabled"}


@dataclass
class Run:
    """A sweep on a cluster, in mid-training."""

    cluster: Nodes
    sweep: Sweep
    folder: Path  # its storage

    def processes(self, title: str) -> list[int]:
        """Pids of the cluster's processes whose title begins so, in the order they were started."""
        table, family = _table(), {p for top in self.cluster.pids for p in descendants(top)}
        return sorted(p for p in family if p in table and table[p][1].startswith(title))


def kill_rank(run: Run) -> None:
    os.kill(run.processes("ray::RayTrainWorker")[-1], signal.SIGKILL)


def kill_actor(run: Run) -> None:
    """The Tune actor: its ranks must go with it."""
    (pid,) = run.processes("ray::ImplicitFunc")
    os.kill(pid, signal.SIGKILL)


def kill_raylet(run: Run) -> None:
    """Of a node that trains."""
    (_, pid) = running(run.sweep.store)[0]
    node = next(n for n in range(1, 4) if pid in descendants(run.cluster.pids[n]))
    os.kill(run.cluster.raylet(node), signal.SIGKILL)


def kill_head(run: Run) -> None:
    run.cluster.kill(0)


def kill_cluster(run: Run) -> None:
    run.cluster.kill(0, 1, 2, 3)


def freeze_rank(run: Run) -> None:
    os.kill(run.processes("ray::RayTrainWorker")[-1], signal.SIGSTOP)


def drain_node(run: Run) -> None:
    """Notice that a node which trains is taken away in twenty seconds, and then it is."""
    (_, pid) = running(run.sweep.store)[0]
    node = next(n for n in range(1, 4) if pid in descendants(run.cluster.pids[n]))
    run.cluster.drain(node, seconds=20)


def read_only(run: Run) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(run.folder)], check=True)
    time.sleep(20)
    subprocess.run(["mount", "-o", "remount,rw", str(run.folder)], check=True)


FAULTS: dict[str, Callable[[Run], None]] = {
    "rank": kill_rank,
    "actor": kill_actor,
    "raylet": kill_raylet,
    "head": kill_head,
    "cluster": kill_cluster,
    "frozen": freeze_rank,
    "drained": drain_node,
    "read-only": read_only,
}


def study(folder: Path, steps: int) -> dict[str, Any]:
    """Two rates, then two seeds: four trials or five."""
    search = {
        "mode": "grid", "seeds": 2, "tuning_seeds": 1, "axes": [{"arms": [{"name": "mha"}]}, rates(1e-3, 3e-3)],
    }  # fmt: skip
    checkpoint = {"checkpoint": {"every_steps": EVERY}}
    return job(folder, steps=steps, search=search, resources=RESOURCES, train=checkpoint)


def on_cluster(folder: Path, file: Path, fault: Callable[[Run], None] | None, ledger: Ledger) -> Sweep:
    """The study on clusters, each of them new, until it ends well; with a fault in the middle of the first."""
    for attempt in range(3):
        with (
            nodes(3) as cluster,
            sweeping(file, folder, "--address", cluster.address, **JOINED) as sweep,
        ):
            if fault is not None and attempt == 0:
                sweep.until(lambda s: running(s) and any(step_of(s, t) > EVERY for t, _ in running(s)), 120)
                ledger.look(sweep.store)
                fault(Run(cluster, sweep, folder))
            if sweep.wait(240) == 0:
                assert (left := left_behind(cluster.address)) == [], left
                return sweep
            assert_honest(sweep.root)
            ledger.look(sweep.store)
    raise AssertionError(f"not finished at the third try\n{sweep.stderr[-3000:]}")


def step_of(store: Store, trial: str) -> int:
    status = store.trial(trial).status()
    return status.step if status else 0


def assert_little_lost(store: Store) -> None:
    """Every attempt begins at most one checkpoint interval before the last step its predecessor wrote of."""
    for trial in store.trial_ids():
        record, reached = store.trial(trial), 0
        for number in record.attempt_numbers():
            begun = (record.provenance(number) or {})["resumed_step"]
            assert begun >= reached - EVERY, (
                f"{trial}: attempt {number} begins at {begun}, {reached} was reached"
            )
            last = record._status_of(number)
            reached = last.step if last else begun


@contextlib.contextmanager
def storage(parent: Path, name: str) -> Iterator[Path]:
    """A file system of its own where mounting is allowed, so that it can become read-only."""
    folder = parent / name
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", str(folder)], capture_output=True
    )
    try:
        yield folder
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def drill(parent: Path, name: str, fault: str, whole: Path, steps: int) -> str:
    """One fault; what there is to say about it. Raises AssertionError when anything is lost."""
    ledger = Ledger()
    with storage(parent, name) as folder:
        file = write_job(parent, study(parent, steps))
        last = on_cluster(folder, file, FAULTS[fault], ledger)
        ledger.look(last.store)
        assert losses(last.store) == losses(Store(whole)), "losses differ from the undisturbed run's"
        assert table(last.root) == table(whole), "the table differs from the undisturbed run's"
        assert_little_lost(last.store)
        attempts = [len(last.store.trial(t).attempt_numbers()) for t in last.store.trial_ids()]
    return f"{sum(attempts)} attempts at {len(attempts)} trials"


def main() -> int:
    """Run the drills asked for; the exit code is the number that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fault", choices=FAULTS, action="append", help="default: all")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each trial")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no cluster stays behind
    failed = 0
    with tempfile.TemporaryDirectory(prefix="drills-") as temporary:
        parent = Path(temporary)
        began = time.monotonic()
        file = write_job(parent, study(parent, given.steps))
        whole = on_cluster(parent / "whole", file, None, Ledger()).root
        print(f"undisturbed {time.monotonic() - began:6.1f} s", flush=True)
        for number in range(given.repeats):
            for fault in given.fault or FAULTS:
                began = time.monotonic()
                try:
                    said = drill(parent, f"{fault}-{number}", fault, whole, given.steps)
                except Exception:
                    failed += 1
                    said = "FAILED\n" + traceback.format_exc()
                print(f"{fault:11} {time.monotonic() - began:6.1f} s  {said}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
