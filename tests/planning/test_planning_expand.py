"""From axes to arms: counts, names, order, samples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_kit import NORMS, RATES, job_of, memory_store, study_of

from fabric.job.document import JobError
from fabric.planning.expand import arms_of_search, label, nuisance_points

PATHS = {
    "model.norm_placement": ["pre", "post", "sandwich"],
    "model.mixer.window": [None, 4, 8, 16],
    "model.mixer.qk_norm": ["none", "head", "full"],
    "train.clip_norm": [0.5, 1.0, 2.0],
    "train.schedule.warmup": [0.0, 0.1],
}
axes = st.lists(st.sampled_from(sorted(PATHS)), min_size=1, max_size=4, unique=True).flatmap(
    lambda paths: st.tuples(
        *(
            st.lists(st.sampled_from(PATHS[p]), min_size=1, unique=True).map(
                lambda v, p=p: {"path": p, "values": v}
            )
            for p in paths
        )
    )
)


def ids(job):
    return {t.id for t in study_of(job, memory_store()).trials.values()}


@settings(deadline=None, derandomize=True, max_examples=40)
@given(axes)
def test_a_grid_is_the_product(found):
    arms = arms_of_search(job_of({"mode": "grid", "axes": list(found)}))
    assert len(arms) == math.prod(len(a["values"]) for a in found)
    assert len({a.name for a in arms}) == len(arms)
    assert len({tuple((o.path, str(o.value)) for o in a.overrides) for a in arms}) == len(arms)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(axes)
def test_one_way_is_the_base_and_each_value_alone(found):
    arms = arms_of_search(job_of({"mode": "oneway", "axes": list(found)}))
    assert arms[0].name == "base"
    assert arms[0].overrides == ()
    assert [len(a.overrides) for a in arms[1:]] == [1] * sum(len(a["values"]) for a in found)
    assert len({a.name for a in arms}) == len(arms)


@settings(deadline=None, derandomize=True, max_examples=6)
@given(axes, st.randoms(use_true_random=False))
def test_trials_do_not_depend_on_the_order_of_axes_or_values(found, rng):
    found = [{**a, "values": a["values"][:2]} for a in found[:3]]
    other = [{**a, "values": rng.sample(a["values"], len(a["values"]))} for a in found]
    rng.shuffle(other)
    assert ids(job_of({"mode": "grid", "axes": found})) == ids(job_of({"mode": "grid", "axes": other}))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(axes, st.integers(1, 80), st.integers(0, 5))
def test_a_sample_is_distinct_reproducible_and_as_large_as_it_can_be(found, n, seed):
    search = {"mode": "random", "axes": list(found), "n_samples": n, "sample_seed": seed}
    arms = arms_of_search(job_of(search))
    n_possible = math.prod(len(a["values"]) for a in found)
    assert len({a.name for a in arms}) == len(arms) == min(n, n_possible)
    assert [a.name for a in arms_of_search(job_of(search))] == [a.name for a in arms]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_ranges_are_sampled_within_their_bounds_by_their_scale(scale):
    axis = {"path": "train.optimizer.lr", "low": 1e-4, "high": 1e-1, "scale": scale}
    arms = arms_of_search(job_of({"mode": "random", "axes": [axis], "n_samples": 200}))
    values = [a.overrides[0].value for a in arms]
    assert len(set(values)) == 200
    assert all(0.99e-4 <= v <= 1.01e-1 for v in values)
    below = sum(v < 10**-2.5 for v in values)  # the middle of the range on a log scale
    assert 70 < below < 130 if scale == "log" else below < 20


def test_a_narrow_range_gives_what_it_holds():
    axis = {"path": "train.optimizer.lr", "low": 1e-3, "high": 1.002e-3}
    assert 2 <= len(arms_of_search(job_of({"mode": "random", "axes": [axis], "n_samples": 50}))) <= 4


def test_samples_differ_between_seeds():
    search = {"mode": "random", "axes": [NORMS, {"path": "model.mixer.window", "values": [None, 4, 8, 16]}]}
    first, second = (
        [a.name for a in arms_of_search(job_of({**search, "n_samples": 6, "sample_seed": s}))] for s in (0, 1)
    )
    assert first != second


def test_values_that_look_alike_get_names_apart():
    kinds = [{"kind": "gqa", "n_heads": 4, "n_kv_heads": g} for g in (1, 2)]
    arms = arms_of_search(job_of({"mode": "grid", "axes": [{"path": "model.mixer", "values": kinds}]}))
    assert [a.name for a in arms] == [f"mixer=gqa_n_heads=4_n_kv_heads={g}" for g in (1, 2)]
    close = {"path": "train.clip_norm", "values": [1.0000001, 1.0000002]}
    assert len({a.name for a in arms_of_search(job_of({"mode": "grid", "axes": [close]}))}) == 2


def test_axes_with_the_same_last_key_are_told_apart():
    warmups = [
        {"path": "model.norm.kind", "values": ["rms", "layer"]},
        {"path": "model.ffn.kind", "values": ["gelu"]},
    ]
    arms = arms_of_search(job_of({"mode": "oneway", "axes": warmups}))
    assert [a.name for a in arms] == ["base", "norm.kind=rms", "norm.kind=layer", "ffn.kind=gelu"]


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"mode": "oneway", "axes": [{"arms": [{"name": "base"}]}]}, "two arms are called 'base'"),
        ({"mode": "grid", "axes": [{"path": f"x.y{i}", "values": list(range(20))} for i in range(3)]}, "8000 arms"),
    ],
)  # fmt: skip
def test_arms_that_cannot_be_told_apart_or_counted_are_errors(search, words):
    with pytest.raises(JobError, match=words):
        arms_of_search(job_of(search))


def test_nuisance_points_are_their_own_grid():
    clip = {"path": "train.clip_norm", "values": [0.5, 1.0], "role": "nuisance"}
    job = job_of({"mode": "grid", "axes": [NORMS, RATES, clip]})
    assert [p.name for p in nuisance_points(job)][:2] == [
        "lr=0.001 + clip_norm=0.5",
        "lr=0.001 + clip_norm=1",
    ]
    assert len(arms_of_search(job)) == 3
    (empty,) = nuisance_points(job_of({"mode": "grid", "axes": [NORMS]}))
    assert (empty.name, empty.overrides) == ("", ())


def test_labels_have_no_spaces():
    for value in (None, 1, 2.5, "a b", [1, 2], {"kind": "x y", "n": 1}, {"a": [1, None]}):
        assert " " not in label(value).replace("x y", "")
