"""Losses measured over other tokens compare with nothing: they are taken again, or not taken over."""

from __future__ import annotations

import copy

from planning_kit import ASHA, BASE, NORMS, QK, RATES, Runner, bowl, finish, job_of, memory_store, study_of

from fabric.analysis.collect import study_rows
from fabric.store import RUNNING


def test_other_final_measurements_are_taken_of_the_same_weights():
    """A loss over other tokens compares with nothing: what is trained is measured again before anything is decided."""
    store, base = memory_store(), copy.deepcopy(BASE)
    first = finish(job_of({"mode": "grid", "axes": [NORMS]}), store)
    base["evaluate"] = {"final_val_tokens": 64, "test_tokens": 64}
    job = job_of({"mode": "grid", "axes": [NORMS, QK]}, base)
    study = study_of(job, store)
    assert not study.finished()
    assert len(study.registry.unmeasured) == 6
    second = Runner(study, loss=lambda trial, tokens: bowl(trial, tokens) + 2.0)
    second.run()
    assert sorted(second.measured) == sorted(first.started)
    assert len(second.started) == 6
    assert not set(second.started) & set(first.started)
    values = [study.registry.last_value(t) for t in study.main_trials()]
    assert min(values) > 3.5, "none is the first run's"
    assert {r.metrics["val_loss"] for r in study_rows(store, study.id).rows} == set(values)
    before = {r.metrics["val_loss"] for r in study_rows(store, first.study.id).rows}
    assert max(before) < 3.5, "and the first run's table stays what it was"
    assert study_of(job, store).finished()


def test_values_at_rungs_over_other_tokens_are_not_taken():
    store, base = memory_store(), copy.deepcopy(BASE)
    search = {"mode": "grid", "axes": [RATES], "scheduler": ASHA}
    first = study_of(job_of(search), store)
    trial = first.next_task().trial
    attempt = store.trial(trial.id).new_attempt({})
    attempt.write_metrics([{"step": 1, "tokens": trial.rungs[0], "val_loss": 1.0, "val_tokens": 65536}])
    attempt.write_status(RUNNING, 1)
    assert study_of(job_of(search), store).trials[trial.id].rung_values == {trial.rungs[0]: 1.0}
    base["evaluate"] = {"val_tokens": 64}
    assert study_of(job_of(search, base), store).trials[trial.id].rung_values == {}
