"""A sweep over a text that is streamed: Ray Data reads it beside the trials, with the numbers of one process."""

from __future__ import annotations

import pytest
from drill_kit import job, write_text
from session_kit import ARMS, tune_sweep

import fabric
from fabric.job.document import JobError
from fabric.job.load import load_job
from fabric.store import Store
from fabric.sweeping import new_study, out_root, slots_for


def streamed(folder, **resources):
    write_text(folder / "text.txt", n_documents=200)
    stream = {"unit_bytes": 2048, "held_out_bytes": 4096}
    search = {"mode": "grid", "seeds": 1, "axes": [{"arms": ARMS[:2]}]}
    return job(folder, steps=12, search=search, data={"stream": stream}, resources=resources)


@pytest.mark.ray
def test_a_streamed_sweep_equals_the_one_in_this_process(ray_session, tmp_path):
    body = streamed(tmp_path)
    study, heard = tune_sweep(body, tmp_path / "ray")
    assert not heard.errors
    alone = fabric.sweep(body, out=tmp_path / "alone", runner="inline")
    for trial in study.trials.values():
        ours, theirs = (Store(r).trial(trial.id) for r in (tmp_path / "ray" / "drill", alone.root))
        rows = [[(r["step"], r["train_loss"], r["data_hash"]) for r in t.metrics()] for t in (ours, theirs)]
        assert rows[0] == rows[1]
        assert len(rows[0]) > 1
        assert ours.status().final["order"] == "approximate"


def test_ray_data_is_left_a_cpu(tmp_path):
    study = new_study(loaded := load_job(streamed(tmp_path)), out_root(loaded, tmp_path), tmp_path, dry=True)
    slots = slots_for(study, {"CPU": 2.0})
    assert (slots.slots, slots.limit) == (1, "2 CPUs at 1 a trial, 1 of them left to Ray Data")
    assert slots_for(study, {"CPU": 3.0}).slots == 2
    with pytest.raises(ValueError, match="no trial fits: 1 CPUs at 1 a trial, 1 of them left to Ray Data"):
        slots_for(study, {"CPU": 1.0})
    with pytest.raises(JobError, match="data_cpus=0 with data.stream: Ray Data would wait for ever"):
        load_job(streamed(tmp_path, data_cpus=0)).configure()
    with pytest.raises(ValueError, match=r"set resources\.max_concurrent if the cluster grows"):
        slots_for(study, {})
    two = load_job(streamed(tmp_path, data_cpus=2))
    study = new_study(two, out_root(two, tmp_path), tmp_path, dry=True)
    assert slots_for(study, {"CPU": 3.0}).slots == 1


def test_a_cluster_that_grows_is_asked_for_as_many_trials_as_the_job_says(tmp_path):
    grows = load_job(streamed(tmp_path, max_concurrent=2))
    study = new_study(grows, out_root(grows, tmp_path), tmp_path, dry=True)
    slots = slots_for(study, {})
    assert slots.slots == 2
    assert slots.limit.startswith("resources.max_concurrent, where the cluster grows; it has 0 CPUs")
    assert slots_for(study, {"CPU": 9.0}).limit == "resources.max_concurrent"
