"""What breaks on a cluster: `python tests/runtime/cluster_drills.py --repeats 5` (about an hour on two idle cores).

A head without CPUs and two nodes of one (one more for each that a fault takes), a study of trials of two DeepSpeed
workers, and in each run of it some faults, in an order drawn anew: kill -9 of a rank, of the Tune actor that holds the
ranks, of the sweep, of a node's raylet, of the head, of the whole cluster; a rank frozen for longer than its group's
patience; a node that is taken away with notice; storage that is read-only for twenty seconds. Where the sweep ends, the
same command goes on, on a new cluster if need be. The final table must be that of an undisturbed run, bit for bit, and
of no trial more may be lost than what was trained since its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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

STEPS, EVERY = 200, 10
RATES = (1e-3, 3e-3)
AWAY = 20.0  # seconds that the storage takes nothing
PATIENCE = 8.0
RESOURCES = {
    "workers": 2, "engine": "deepspeed", "zero_stage": 2, "patience_seconds": PATIENCE, "max_concurrent": 1,
}  # fmt: skip
JOINED = {"RAY_AUTH_MODE": "disabled"}


@dataclass
class Run:
    """A sweep on a cluster, in mid-training."""

    cluster: Nodes
    sweep: Sweep
    folder: Path  # its storage
    pid: int  # of a rank that trains

    def processes(self, title: str) -> list[int]:
        """Pids of the cluster's processes whose title begins so, in the order they were started."""
        table, family = _table(), {p for top in self.cluster.pids for p in descendants(top)}
        return sorted(p for p in family if p in table and table[p][1].startswith(title))

    @property
    def node(self) -> int:
        """The node of the rank."""
        return next(n for n, top in enumerate(self.cluster.pids) if self.pid in descendants(top))


def kill_rank(run: Run) -> None:
    os.kill(run.processes("ray::RayTrainWorker")[-1], signal.SIGKILL)


def kill_actor(run: Run) -> None:
    """The Tune actor: its ranks must go with it."""
    os.kill(run.processes("ray::ImplicitFunc")[-1], signal.SIGKILL)


def kill_sweep(run: Run) -> None:
    run.sweep.kill()


def kill_raylet(run: Run) -> None:
    """Of a node that trains."""
    os.kill(run.cluster.raylet(run.node), signal.SIGKILL)


def kill_head(run: Run) -> None:
    run.cluster.kill(0)


def kill_cluster(run: Run) -> None:
    run.cluster.kill(*range(len(run.cluster.pids)))


def freeze_rank(run: Run) -> None:
    os.kill(run.processes("ray::RayTrainWorker")[-1], signal.SIGSTOP)


def drain_node(run: Run) -> None:
    """Notice that a node which trains is taken away in twenty seconds, and then it is."""
    run.cluster.drain(run.node, seconds=20)


def read_only(run: Run) -> None:
    """For whoever opens a file anew; what is open stays so."""
    subprocess.run(["mount", "--bind", str(run.folder), str(run.folder)], check=True)
    deadline = time.monotonic() + 20
    # Refused while somebody has a file open for writing, begun since the line above.
    while subprocess.run(["mount", "-o", "remount,ro,bind", str(run.folder)], capture_output=True).returncode:
        assert time.monotonic() < deadline, "the storage could not be made read-only"
        time.sleep(0.05)
    time.sleep(AWAY)
    subprocess.run(["umount", "-l", str(run.folder)], check=True)


FAULTS: dict[str, Callable[[Run], None]] = {
    "rank": kill_rank,
    "actor": kill_actor,
    "sweep": kill_sweep,
    "raylet": kill_raylet,
    "head": kill_head,
    "cluster": kill_cluster,
    "frozen": freeze_rank,
    "drained": drain_node,
    "read-only": read_only,
}


def study(folder: Path, steps: int, lr: Sequence[float] = RATES) -> dict[str, Any]:
    """Two rates, then two seeds: four trials; with one rate, two."""
    search = {
        "mode": "grid", "seeds": 2, "tuning_seeds": 1, "axes": [{"arms": [{"name": "mha"}]}, rates(*lr)],
    }  # fmt: skip
    checkpoint = {"checkpoint": {"every_steps": EVERY}}
    return job(folder, steps=steps, search=search, resources=RESOURCES, train=checkpoint)


def on_clusters(folder: Path, file: Path, faults: Sequence[str], ledger: Ledger) -> Sweep:
    """The study until it ends well, on a new cluster when the old one is gone; each fault strikes another trial."""
    left, struck = list(faults), set[str]()

    def victim(store: Store) -> tuple[str, int] | None:
        ripe = [(t, pid) for t, pid in running(store) if t not in struck and step_of(store, t) > EVERY]
        return ripe[0] if ripe else None

    with ExitStack() as stack:
        cluster: Nodes | None = None
        for _ in range(2 + len(faults)):
            if cluster is None or not cluster.stands:
                # Nodes that join later would take the workers' folder away: on one machine all share it.
                cluster = stack.enter_context(nodes(2 + len({"raylet", "drained"}.intersection(left))))
            with sweeping(file, folder, "--address", cluster.address, **JOINED) as sweep:
                while left and sweep.process.poll() is None and cluster.stands:
                    trial, pid = sweep.until(victim, 240)
                    ledger.look(sweep.store)
                    struck.add(trial)
                    FAULTS[left.pop(0)](Run(cluster, sweep, folder, pid))
                    # What was struck has to fall before the next one is looked for.
                    deadline = time.monotonic() + 3 * PATIENCE
                    while sweep.process.poll() is None and cluster.stands and time.monotonic() < deadline:
                        if trial not in dict(running(sweep.store)):
                            break
                        time.sleep(0.1)
                code = sweep.wait(300)
            if code == 0:
                assert not left, f"not struck: {left}"
                assert (there := left_behind(cluster.address)) == [], there
                return sweep
            assert_honest(sweep.root)
            ledger.look(sweep.store)
    raise AssertionError(f"not finished after all faults\n{sweep.stderr[-3000:]}")


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


def drill(parent: Path, name: str, faults: Sequence[str], whole: Path, steps: int) -> str:
    """One run; what there is to say about it. Raises AssertionError when anything is lost."""
    ledger, folder = Ledger(), parent / name
    folder.mkdir()
    file = write_job(parent, study(parent, steps))
    last = on_clusters(folder, file, faults, ledger)
    ledger.look(last.store)
    assert losses(last.store) == losses(Store(whole)), "losses differ from the undisturbed run's"
    assert table(last.root) == table(whole), "the table differs from the undisturbed run's"
    assert_little_lost(last.store)
    attempts = [len(last.store.trial(t).attempt_numbers()) for t in last.store.trial_ids()]
    return f"{sum(attempts)} attempts at {len(attempts)} trials"


def main() -> int:
    """Run the drills asked for; the exit code is the number of runs that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fault", choices=FAULTS, action="append", help="default: all")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--together", type=int, default=3, help="faults in one run of the study")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each trial")
    parser.add_argument("--seed", type=int, default=0, help="of the faults' order")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no cluster stays behind
    failed, order = 0, random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="drills-") as temporary:
        parent = Path(temporary)
        began = time.monotonic()
        file = write_job(parent, study(parent, given.steps))
        whole = on_clusters(parent / "whole", file, [], Ledger()).root
        print(f"undisturbed {time.monotonic() - began:6.1f} s", flush=True)
        for number in range(given.repeats):
            faults = list(given.fault or FAULTS)
            order.shuffle(faults)
            for first in range(0, len(faults), given.together):
                some = faults[first : first + given.together]
                began = time.monotonic()
                try:
                    said = drill(parent, f"{number}-{first}", some, whole, given.steps)
                except Exception:
                    failed += 1
                    said = "FAILED\n" + traceback.format_exc()
                seconds = time.monotonic() - began
                print(f"{' '.join(some):30} {seconds:6.1f} s  {said}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
