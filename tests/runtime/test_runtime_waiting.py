"""A long wait for the first trial is said once, with what is waited for."""

from __future__ import annotations

import pytest

from fabric.job.schema import ResourcesConfig
from fabric.runtime import waiting
from fabric.runtime.waiting import FirstWait


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(waiting, "node_resources", lambda: [{"CPU": 1.0}, {}])
    return now


def test_it_is_said_once_and_names_what_is_asked_for(clock):
    said = []
    wait = FirstWait(ResourcesConfig(cpus_per_worker=2, gpus_per_worker=1), lambda *words: said.append(words))
    for _ in range(4):
        wait.look(has_begun=False)
        clock[0] += 31
    ((words, share),) = said
    assert "no trial has begun for 62 s" in words
    assert "waits for 2 CPUs and 1 GPUs free on one node" in words
    assert "nodes have 1, 0 CPUs" in words
    assert share == 0.0


def test_once_a_trial_has_run_nothing_is_said(clock):
    said = []
    wait = FirstWait(ResourcesConfig(), said.append)
    wait.look(has_begun=True)
    clock[0] += 1000
    wait.look(has_begun=False)
    assert not said
