"""Every kill at every moment: `python tests/runtime/drills.py --all` (about a quarter of an hour on two idle cores).

Kills a worker, the driver, or all of Ray with SIGKILL, at three moments each, lets the same command finish, and holds
the result against an undisturbed run: no finished trial trained again, no decision taken anew, status honest, losses
and final table equal bit for bit. Under FIFO and under `asha: {sync: true}`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drill_kit import (
    FIFO,
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
    resumed,
    running,
    sweeping,
    table,
    two_phases,
    write_job,
)

import fabric
from fabric.store import Store

MOMENTS: dict[str, Callable[[Store], Any]] = {
    "tuning": lambda s: n_finished(s) >= 1 and running(s),
    "between": lambda s: decision(s, 0),
    "last": lambda s: decision(s, 0) and n_finished(s) >= 12 and running(s),
}


def kill_worker(run: Sweep) -> None:
    """One trial's actor, whichever trains; the sweep itself goes on."""
    _, pid = run.until(lambda s: running(s) and running(s)[0])
    os.kill(pid, signal.SIGKILL)


def kill_driver(run: Sweep) -> None:
    """The driver: its Ray must go with it."""
    family = descendants(run.pid, agents=False)
    run.kill()
    assert gone(family, 60), "Ray outlives its driver"


def kill_all_of_ray(run: Sweep) -> None:
    """Raylet, gcs and workers: the driver must say so and end."""
    kill_ray(run)
    assert run.wait(60) == 2, run.stderr
    assert "the same command goes on" in run.stderr


KILLS = {"worker": kill_worker, "driver": kill_driver, "ray": kill_all_of_ray}


def drill(folder: Path, body: dict[str, Any], whole: Path, kill: str, moment: str) -> str:
    """One kill at one moment; what there is to say about it. Raises AssertionError when anything is lost."""
    folder.mkdir()
    file, out, ledger = write_job(folder, body), folder / "runs", Ledger()
    with sweeping(file, out) as run:
        run.until(MOMENTS[moment])
        ledger.look(run.store)
        before = n_finished(run.store)
        KILLS[kill](run)
        if kill == "worker":
            assert run.wait() == 0, run.stderr
    ledger.look(run.store)
    assert_honest(run.root)
    last = resumed(file, out)
    ledger.look(last.store)
    assert losses(last.store) == losses(Store(whole)), "losses differ from the undisturbed run's"
    assert table(last.root) == table(whole), "the table differs from the undisturbed run's"
    attempts = [len(last.store.trial(t).attempt_numbers()) for t in last.store.trial_ids()]
    return f"{before} finished before, {sum(attempts)} attempts at {len(attempts)} trials"


def main() -> int:
    """Run the drills asked for; the exit code is the number that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every kill, moment and scheduler")
    parser.add_argument("--kill", choices=KILLS, action="append")
    parser.add_argument("--moment", choices=MOMENTS, action="append")
    parser.add_argument("--scheduler", choices=["fifo", "sync"], action="append")
    parser.add_argument("--steps", type=int, default=60, help="of each trial")
    given = parser.parse_args()
    if not (given.all or given.kill or given.moment or given.scheduler):
        parser.error("say --all, or which")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="drills-") as temporary:
        for scheduler in given.scheduler or ["fifo", "sync"]:
            folder = Path(temporary) / scheduler
            folder.mkdir()
            search = two_phases(FIFO if scheduler == "fifo" else SYNC_ASHA)
            body = job(folder, steps=given.steps, search=search)
            whole = fabric.sweep(body, out=folder / "whole", runner="inline").root
            for kill in given.kill or KILLS:
                for moment in given.moment or MOMENTS:
                    began = time.monotonic()
                    try:
                        said = drill(folder / f"{kill}-{moment}", body, whole, kill, moment)
                    except AssertionError:
                        failed += 1
                        said = "FAILED\n" + traceback.format_exc()
                    took = time.monotonic() - began
                    print(f"{scheduler:5} {kill:7} {moment:8} {took:6.1f} s  {said}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
