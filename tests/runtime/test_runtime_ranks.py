"""Trials of two ranks: one worker group for all of them, stopped in the middle of one, and killed in another."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
import ray
from drill_kit import GQA, SYNC_ASHA, job, rates
from ray.util import placement_group_table
from session_kit import tune_sweep

import fabric
from fabric.store import Store

# Not beside other tests on one Ray: what a group holds is not always given back.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.drill]
LAST = 3  # finished trials before the last one: the best rate of each arm, and one arm's main trial
RESOURCES = {"workers": [1, 2], "engine": "deepspeed", "zero_stage": 2}


def kill_once(store: Store, killed: list[int]) -> None:
    """Wait for the last trial to train, and kill its rank 0: the group that goes on is the test's last one."""
    deadline = time.monotonic() + 240
    while not killed and time.monotonic() < deadline:
        found = {trial: store.trial(trial).status() for trial in store.trial_ids()}
        n_finished = sum(s is not None and s.state == "finished" for s in found.values())
        for trial, status in found.items():
            if n_finished == LAST and status and status.state == "running" and status.step > 0:
                killed.append((store.trial(trial).provenance(status.attempt) or {})["pid"])
                os.kill(killed[0], signal.SIGKILL)
                return
        time.sleep(0.05)


def test_a_group_trains_trial_after_trial_through_stops_and_a_kill(ray_session, tmp_path):
    arms = [{"name": "mha"}, {"name": "gqa", "set": GQA}]
    search = {
        "mode": "grid", "seeds": 1, "tuning_seeds": 1, "axes": [{"arms": arms}, rates(1e-5, 1e-2, 1e-3)],
        "scheduler": SYNC_ASHA,
    }  # fmt: skip
    body = job(
        tmp_path, steps=60, search=search, resources=RESOURCES, train={"checkpoint": {"every_steps": 5}}
    )
    root = tmp_path / "runs" / "drill"
    killed: list[int] = []
    killer = threading.Thread(target=kill_once, args=(Store(root), killed), daemon=True)
    killer.start()
    study, _ = tune_sweep(body, tmp_path / "runs")
    killer.join(1)
    assert len(killed) == 1
    records = [study.registry.record(t) for t in study.trials.values()]
    pids = {(r.provenance(n) or {})["pid"] for r in records for n in r.attempt_numbers()}
    assert len(pids) == 2, "a group of two for all, and one of one that ends the killed trial"
    worlds = [(r.provenance(n) or {})["ranks"]["world"] for r in records for n in r.attempt_numbers()]
    assert sorted(set(worlds)) == [1, 2]
    assert worlds.count(1) == 1
    ends = {t.id: t.end for t in study.trials.values()}
    assert set(ends.values()) == {"finished", "stopped"}, ends
    # Nothing stays behind on a Ray that goes on.
    deadline = time.monotonic() + 15
    while ray.available_resources().get("CPU") != 2 or held():
        assert time.monotonic() < deadline, (ray.available_resources(), held())
        time.sleep(0.2)
    # The numbers are those of one process.
    alone = fabric.sweep(body, out=tmp_path / "alone", runner="inline")
    for trial in study.trials.values():
        ours, theirs = (Store(r).trial(trial.id) for r in (root, alone.root))
        assert losses(ours) == pytest.approx(losses(theirs), abs=5e-6), trial.arm


def held() -> list[Any]:
    return [g for g in placement_group_table().values() if g["state"] != "REMOVED"]


def losses(record: Any) -> list[float]:
    return [r[k] for r in record.metrics() for k in ("train_loss", "val_loss") if r.get(k) is not None]
