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


def planned(folder, **resources):
    loaded = load_job(streamed(folder, **resources))
    return new_study(loaded, out_root(loaded, folder), folder, dry=True)


def of_cpus(*counts):
    return [{"CPU": float(n)} for n in counts]


def test_ray_data_is_left_a_cpu(tmp_path):
    study = planned(tmp_path)
    slots = slots_for(study, of_cpus(2))
    assert (slots.slots, slots.limit) == (1, "2 CPUs at 1 a trial, 1 of them left to Ray Data")
    assert slots_for(study, of_cpus(3)).slots == 2
    with pytest.raises(ValueError, match="no trial fits: 1 CPUs at 1 a trial, 1 of them left to Ray Data"):
        slots_for(study, of_cpus(1))
    with pytest.raises(JobError, match="data_cpus=0 with data.stream: Ray Data would wait for ever"):
        load_job(streamed(tmp_path, data_cpus=0)).configure()
    assert slots_for(planned(tmp_path, data_cpus=2), of_cpus(3)).slots == 1


def test_trials_that_wait_do_not_take_ray_datas_cpu(tmp_path):
    """However many the job allows: on a cluster that does not grow they would all wait for ever."""
    assert slots_for(planned(tmp_path, max_concurrent=2), of_cpus(1, 1)).slots == 1
    with pytest.raises(ValueError, match="no trial fits: 0 CPUs.* larger nodes, or more of them$"):
        slots_for(planned(tmp_path, max_concurrent=2), [{}])


def test_a_worker_needs_its_cpus_on_one_node(tmp_path):
    study = planned(tmp_path, cpus_per_worker=2)
    with pytest.raises(ValueError, match=r"no trial fits: 3 CPUs \(at most 1 on one node\) at 2 a trial"):
        slots_for(study, of_cpus(1, 1, 1))
    # Ray Data takes what no worker can, then a worker's.
    assert slots_for(study, of_cpus(2, 3, 1)).slots == 2
    assert slots_for(study, of_cpus(2, 4)).slots == 2
    assert slots_for(planned(tmp_path, cpus_per_worker=2, data_cpus=3), of_cpus(3, 4)).slots == 2
    # The workers of one trial may be on several nodes.
    assert slots_for(planned(tmp_path, cpus_per_worker=2, workers=2), of_cpus(3, 2)).slots == 1
    gpus = planned(tmp_path, gpus_per_worker=1)
    assert slots_for(gpus, [{"CPU": 1.0, "GPU": 4.0}, {"CPU": 9.0}, {"CPU": 2.0, "GPU": 1.0}]).slots == 2


def test_a_cluster_that_grows_is_asked_for_as_many_trials_as_the_job_says(tmp_path):
    write_text(tmp_path / "text.txt")
    one_arm = {"mode": "grid", "seeds": 3, "axes": [{"arms": [{"name": "mha"}]}]}
    loaded = load_job(job(tmp_path, search=one_arm, resources={"max_concurrent": 2}))
    study = new_study(loaded, out_root(loaded, tmp_path), tmp_path, dry=True)
    slots = slots_for(study, [{}])
    assert slots.slots == 2
    assert slots.limit.startswith("resources.max_concurrent, where the cluster grows; it has 0 CPUs")
    assert slots_for(study, of_cpus(9)).limit == "resources.max_concurrent"
    loaded = load_job(job(tmp_path, search=one_arm))
    with pytest.raises(ValueError, match=r"set resources\.max_concurrent if the cluster grows"):
        slots_for(new_study(loaded, out_root(loaded, tmp_path), tmp_path, dry=True), [{}])
