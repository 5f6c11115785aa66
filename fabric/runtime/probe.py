"""What Ray and Tune cost around a trial: the program `fabric.bench.breadth` starts in a fresh process."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from fabric.planning.machine import cpu_count
from fabric.planning.study import Task
from fabric.runtime.connect import cluster
from fabric.runtime.worker import perform_on_ray, report_to_tune
from fabric.store import driver_lock
from fabric.sweeping import Caches, Silent, new_study
from fabric.train.directive import Directive

TIMES = "probe"  # the folder beside a job's trials in which each leaves its times


def probe(short: Mapping[str, Any], reporting: Mapping[str, Any], out: str) -> dict[str, float]:
    """Seconds of Ray's start, an actor's, the first step there, a further trial, and one report.

    `short` is a job of several one-step trials, one at a time; `reporting` of one trial that reports every step.
    """
    began = time.perf_counter()
    with cluster(None, cpu_count()):
        found = {"ray start": time.perf_counter() - began}
        asked, trials = _trials(short, Path(out))
        found["actor start"] = trials[0]["called"] - asked[0]
        found["first step"] = trials[0]["first_step"]
        # From a trial's beginning to the next one's, all but the steps: both, for what one leaves to the other's time.
        found["further trial"] = median(
            b["called"] - a["called"] - a["steps"] for a, b in pairwise(trials[1:])
        )
        reports = _trials(reporting, Path(out))[1][0]["reports"]
        found["report"] = median(reports[1:])
    return found


def probe_groups(short: Mapping[str, Any], stopped: Mapping[str, Any], out: str) -> dict[str, list[float]]:
    """Seconds from a hand-over to the first step done, on a new worker group and on a warm one, and of a stop.

    `short` is a job of several one-step trials, one at a time; `stopped` one of longer trials, most stopped by ASHA.
    """
    with cluster(None, cpu_count()):
        asked, trials = _trials(short, Path(out))
        first, *further = [t["called"] + t["first_step"] - a for a, t in zip(asked, trials, strict=True)]
        _, trials = _trials(stopped, Path(out))
    stops = [b["called"] - a["left"] for a, b in pairwise(trials) if a["left"] is not None]
    return {"first group": [first], "further trial": further, "stop": stops}


class _Started(Silent):
    """Remembers when trials were handed to Tune."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def started(self, task: Task) -> None:
        if task.kind == "train":
            self.at.append(time.time())


def _trials(body: Mapping[str, Any], out: Path) -> tuple[list[float], list[dict[str, Any]]]:
    """When a job's trials were handed out, and the times each left, by when they began."""
    from fabric.job.load import load_job
    from fabric.runtime.tune import run_study

    loaded = load_job(body)
    root = out / loaded.name
    heard = _Started()
    with driver_lock(root):
        study = new_study(loaded, root, out)
        run_study(
            study,
            slots=1,
            cpus=1,
            gpus=0,
            root=root,
            progress=heard,
            caches=Caches(loaded, out, heard),
            trainable=timed_trial,
        )
    if failed := [t.id for t in study.trials.values() if t.end == "failed"]:
        raise RuntimeError(f"trials failed: {', '.join(failed)}")
    times = [json.loads(path.read_text()) for path in (root / TIMES).iterdir()]
    return heard.at, sorted(times, key=lambda t: float(t["called"]))


def timed_trial(config: dict[str, Any]) -> None:
    """`fabric_trial`, leaving its times on disk: after the last report Tune may not come back."""
    task = config["task"]
    times: dict[str, Any] = {"called": time.time(), "reports": [], "left": None}
    file = Path(task["store"], TIMES, f"{task['trial']}.json")

    def report(row: Mapping[str, Any]) -> Directive:
        began = time.time()
        times.setdefault("first_step", began - times["called"])
        times["steps"] = row["seconds"]
        _write(file, times)
        try:
            directive = report_to_tune(row)
        except SystemExit:  # Tune's stop
            times["left"] = began
            _write(file, times)
            raise
        times["reports"].append(time.time() - began)
        _write(file, times)
        return directive

    perform_on_ray(task, report_to_tune if task["kind"] == "test" else report)


def _write(file: Path, times: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(times))
