"""A sweep on a cluster of several nodes through two faults, which the commit chooses; all: `cluster_drills.py`."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from cluster_drills import FAULTS, RESOURCES, STEPS, assert_little_lost, on_clusters, study
from drill_kit import GQA, ROOT, Ledger, job, losses, write_job, write_text
from ranks_kit import Ranks

from fabric.planning.trial import TrialSpec
from fabric.store import Store
from fabric.sweeping import cache_root

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def chosen(folder: Path) -> list[str]:
    """Two faults: FABRIC_FAULTS, or what the commit's hash says; none that this machine does not permit."""
    if given := os.environ.get("FABRIC_FAULTS"):
        return given.split(",")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    names = sorted(FAULTS)
    bind = ["mount", "--bind", str(folder), str(folder)]
    if shutil.which("mount") is None or subprocess.run(bind, capture_output=True).returncode:
        names.remove("read-only")
    else:
        subprocess.run(["umount", str(folder)], check=True)
    return random.Random(commit.strip()).sample(names, 2)


def trained_again(store: Store, folder: Path) -> Store:
    """Every trial once more, undisturbed, by two plain processes."""
    again, ranks = Store(folder.parent / "again"), Ranks(2)
    try:
        for name in store.trial_ids():
            body = store.trial(name).spec()
            again.trial(name).write_spec(body)
            spec = TrialSpec.model_validate(body)
            ranks.train(spec, again.root, cache_root(folder) / "tokens" / spec.data_key)
    finally:
        ranks.end()
    return again


def test_two_faults_change_no_number(tmp_path):
    folder, ledger = tmp_path / "runs", Ledger()
    folder.mkdir()
    faults = chosen(folder)
    last = on_clusters(folder, write_job(tmp_path, study(tmp_path, STEPS // 2, [3e-3])), faults, ledger)
    ledger.look(last.store)
    assert_little_lost(last.store)
    found = losses(last.store)
    assert len(found) == len(last.store.trial_ids()) == 2, faults
    assert losses(trained_again(last.store, folder)) == found, faults


@pytest.mark.drill
def test_ranks_of_several_nodes_share_a_stream_that_ray_data_reads(tmp_path):
    write_text(tmp_path / "text.txt", n_documents=400)
    search = {"mode": "grid", "seeds": 1, "axes": [{"arms": [{"name": "mha"}, {"name": "gqa", "set": GQA}]}]}
    stream = {"stream": {"unit_bytes": 2048, "held_out_bytes": 4096}}
    body = job(tmp_path, steps=40, search=search, data=stream, resources=RESOURCES)
    folder = tmp_path / "runs"
    last = on_clusters(folder, write_job(tmp_path, body), [], Ledger())
    again = trained_again(last.store, folder)
    for name in last.store.trial_ids():
        ours, theirs = (
            [(r["step"], r["train_loss"], r["data_hash"]) for r in s.trial(name).metrics()]
            for s in (last.store, again)
        )
        assert ours == theirs
        assert len(ours) > 3
        assert last.store.trial(name).status().final["order"] == "approximate"
