"""Axes that undo each other or change nothing are refused; settings that swallow a run are said."""

from __future__ import annotations

import copy

import pytest
from planning_kit import BASE, NORMS, job_of, memory_store, study_of

from fabric.job.document import JobError

HEADS = {"path": "model.mixer.n_heads", "values": [2, 4]}
MIXERS = {"path": "model.mixer", "values": [{"kind": "mha", "n_heads": 2}, {"kind": "mha", "n_heads": 4}]}
RATE = {"path": "train.optimizer.lr", "values": [1e-3, 3e-3], "role": "nuisance"}


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"axes": [HEADS, MIXERS]}, ["model.mixer replaces model.mixer.n_heads", "n_heads=2 + mixer", "first"]),
        ({"axes": [HEADS, HEADS]}, ["model.mixer.n_heads is listed twice"]),
        (
            {"axes": [{"arms": [{"name": "a", "set": {"train.optimizer.lr": 1.0}}]},
                      {"path": "train.optimizer", "values": [{"kind": "adamw", "lr": 1e-3}], "role": "nuisance"}]},
            ["train.optimizer", "a nuisance axis tunes"],
        ),
        (
            {"axes": [{"path": "model.ffn.d_ff", "values": [64, 32]}], "match": "params"},
            ["model.ffn.d_ff", "search.match: params solves"],
        ),
        (
            {"axes": [{"arms": [{"name": "a"}, {"name": "b", "set": {"train.objective": {"kind": "denoise"},
                                                                     "model.causal": False}}]}]},
            ["'b' changes train.objective", "cannot be compared"],
        ),
        ({"axes": [{"path": "train.compile", "values": [False, True]}]}, ["train.compile", "one and the same"]),
        ({"axes": [{"path": "evaluate.times", "values": [2, 4]}]}, ["evaluate.times", "one and the same"]),
        ({"axes": [{"path": "train.micro_batch_size", "values": [1, 2]}]}, ["micro_batch_size", "one and the same"]),
    ],
)  # fmt: skip
def test_axes_that_undo_each_other_or_change_nothing_are_refused(search, words):
    with pytest.raises(JobError) as caught:
        study_of(job_of({"mode": "grid", **search}), memory_store(), dry=True)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


def test_a_rate_inside_an_arms_optimizer_that_is_tuned_is_said_to_be_unused():
    arms = {"arms": [{"name": "a", "set": {"train.optimizer": {"kind": "adamw", "lr": 5e-3}}}]}
    study = study_of(job_of({"mode": "grid", "axes": [arms, RATE]}), memory_store(), dry=True)
    (warning,) = study.warnings
    assert "arm 'a' writes train.optimizer.lr 0.005, which is not used" in warning


def test_an_axis_may_refine_what_one_before_it_sets():
    study = study_of(job_of({"mode": "grid", "axes": [MIXERS, HEADS]}), memory_store(), dry=True)
    assert {t.spec.model.mixer.n_heads for t in study.trials.values()} == {2, 4}


def test_phases_may_set_again_what_earlier_ones_set():
    phases = [{"name": "a", "axes": [HEADS]}, {"name": "b", "axes": [MIXERS]}]
    assert study_of(job_of({"mode": "phases", "phases": phases}), memory_store(), dry=True).trials


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("train", {"schedule": {"kind": "wsd", "warmup": 5000}}, "the warm-up of 5000 steps takes the whole run of 9"),
        ("train", {"early_stop": {"patience": 8}}, "early_stop can end nothing"),
        ("evaluate", {"times": 3, "every_tokens": 500}, "evaluate.times is not used"),
        ("evaluate", {"every_tokens": "1M"}, "evaluated at its end only"),
    ],
)  # fmt: skip
def test_settings_without_effect_are_said_once(section, changes, words):
    base = copy.deepcopy(BASE)
    base[section] = {**base.get(section, {}), **changes}
    study = study_of(job_of({"mode": "grid", "axes": [NORMS]}, base), memory_store(), dry=True)
    assert len([w for w in study.warnings if words in w]) == 1, study.warnings
    quiet = study_of(job_of({"mode": "grid", "axes": [NORMS, RATE]}), memory_store(), dry=True)
    assert quiet.warnings == []
