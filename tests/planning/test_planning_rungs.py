"""Rungs: who stops, who waits, and that no moment of interruption changes what is decided."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_kit import (
    ASHA,
    NORMS,
    QK,
    RATES,
    Runner,
    bowl,
    finish,
    job_of,
    memory_store,
    records,
    study_of,
    winners,
)

from fabric.analysis.collect import study_rows
from fabric.planning.stopping.asha import Asha
from fabric.planning.tasks import middle_first
from fabric.store import FINISHED

TUNED = {"mode": "grid", "axes": [{**NORMS, "values": ["pre", "post"]}, RATES], "tuning_seeds": 2}
PHASED = {
    "mode": "phases",
    "axes": [RATES],
    "phases": [
        {"name": "norm", "axes": [{**NORMS, "values": ["pre", "post"]}], "keep": 2},
        {"name": "qk", "axes": [QK]},
    ],
}
COMPETING = {"mode": "phases", "compete": "arms", "phases": [{**p} for p in PHASED["phases"]]}
SEARCHES = {
    "tuned": {**TUNED, "scheduler": ASHA},
    "phased": {**PHASED, "scheduler": ASHA},
    "competing": {**COMPETING, "scheduler": {**ASHA, "reduction_factor": 2}},
    "tuned and competing": {**PHASED, "compete": "arms", "scheduler": {**ASHA, "reduction_factor": 2}},
    "fifo": {**PHASED, "scheduler": {"kind": "fifo"}},
}


def sometimes_diverging(trial, tokens):
    """The bowl, but for the highest rate, which diverges on some seeds after its first rung."""
    if trial.spec.train.optimizer.lr > 5e-3 and trial.seed % 2 and tokens > 200:
        return None
    return bowl(trial, tokens)


JOBS = {name: job_of(search) for name, search in SEARCHES.items()}
UNDISTURBED = {}


def undisturbed(name):
    if name not in UNDISTURBED:
        runner = finish(JOBS[name], memory_store(), loss=sometimes_diverging)
        UNDISTURBED[name] = records(runner.study.store, runner.study.id)
        assert any(k.startswith("decision-") for k in UNDISTURBED[name])
    return UNDISTURBED[name]


def disturbed(job, seed, moments, slots):
    """Work with events in random order, with the driver killed after each number of events; the last study."""
    store, rng = memory_store(), random.Random(seed)
    for moment in [*moments, None]:
        runner = Runner(study_of(job, store), sometimes_diverging, slots, rng)
        if runner.run(moment):
            break
    return runner.study


@pytest.mark.parametrize("name", list(SEARCHES))
@settings(deadline=None, derandomize=True, max_examples=8)
@given(
    seed=st.integers(0, 10_000),
    moments=st.lists(st.integers(1, 60), max_size=4),
    slots=st.integers(1, 9),
)
def test_no_interruption_or_order_changes_a_decision(name, seed, moments, slots):
    study = disturbed(JOBS[name], seed, moments, slots)
    assert records(study.store, study.id) == undisturbed(name)
    assert study_of(JOBS[name], study.store).finished()


@settings(deadline=None, derandomize=True, max_examples=12)
@given(
    seed=st.integers(0, 10_000),
    moments=st.lists(st.integers(1, 60), max_size=4),
    slots=st.integers(1, 9),
    eta=st.integers(2, 4),
    compete=st.booleans(),
)
def test_asynchronous_asha_ends_and_never_takes_a_decision_again(seed, moments, slots, eta, compete):
    scheduler = {"kind": "asha", "reduction_factor": eta}
    search = {**PHASED, "tuning_seeds": 2, "scheduler": scheduler, "compete": "arms" if compete else "rates"}
    job = job_of(search)
    store, rng, before = memory_store(), random.Random(seed), {}
    for moment in [*moments, None]:
        runner = Runner(study_of(job, store), sometimes_diverging, slots, rng)
        done = runner.run(moment)
        now = records(store, runner.study.id)
        assert {k: now.get(k) for k in before} == before
        before = now
        if done:
            break
    assert runner.study.finished()


def test_synchronous_asha_trains_less_and_finds_the_grids_rates():
    grid = finish(job_of(TUNED), memory_store())
    asha = finish(job_of({**TUNED, "scheduler": ASHA}), memory_store())
    chosen = [{t.spec.train.optimizer.lr for t in r.study.main_trials()} for r in (grid, asha)]
    assert chosen[0] == chosen[1] == {3e-3}
    stopped = [t for t in asha.study.trials.values() if t.end == "stopped"]
    assert len(stopped) == 2 * 2 * 2  # of three rates on two seeds, in two arms, one goes on
    for trial in stopped:
        (decision,) = [d for d in trial.decisions.values() if d["stop"]]
        assert decision["value"] > decision["cutoff"]
        assert decision["unit"] == trial.point
        assert set(decision["seen"]) == {"lr=0.001", "lr=0.003", "lr=0.01"}
        assert decision["rung"] == 128


def slow_starter(trial, tokens):
    """post is worse than pre until the end, where it wins."""
    post = trial.spec.model.norm_placement == "post"
    return bowl(trial, tokens) + (-0.5 if post and tokens > 1000 else 0.3 if post else 0.0)


def test_by_default_a_slow_starter_is_not_stopped_for_another_arm():
    for sync in (True, False):
        study = finish(
            job_of({**TUNED, "scheduler": {**ASHA, "sync": sync}}), memory_store(), loss=slow_starter
        ).study
        assert winners(study) == ["norm_placement=post"] or study.phases[0].decision["ranking"][0].endswith(
            "post"
        )
        assert all(t.end == FINISHED for t in study.main_trials())


@pytest.mark.parametrize("sync", [True, False])
def test_competing_arms_stop_with_all_their_seeds_together(sync):
    search = {
        "mode": "grid",
        "axes": [NORMS],
        "seeds": 3,
        "compete": "arms",
        "scheduler": {**ASHA, "sync": sync},
    }
    runner = finish(job_of(search), memory_store(), slots=2)
    ends = {a.arm.name: {t.end for t in a.main} for a in runner.study.phases[0].arms}
    assert ends["norm_placement=pre"] == {FINISHED}
    assert ends["norm_placement=sandwich"] == {"stopped"}
    rows = [r for r in study_rows(runner.study.store, runner.study.id).rows if "sandwich" in r.arm]
    assert {r.outcome for r in rows} == {"censored"}
    assert all("cutoff" in (r.reason or {}) for r in rows), "the table knows which rung stopped them"
    assert all(len(e) == 1 for e in ends.values())
    rungs = {a.arm.name: {tuple(t.decisions) for t in a.main} for a in runner.study.phases[0].arms}
    assert all(len(r) == 1 for r in rungs.values())


def test_the_adopted_arm_competes_in_the_next_phase_though_it_is_trained_already():
    search = {**COMPETING, "scheduler": {**ASHA, "reduction_factor": 2}}
    search["phases"] = [{"name": "norm", "axes": [NORMS]}, {"name": "qk", "axes": [QK]}]
    study = finish(job_of(search), memory_store()).study
    normalised = study.phases[1].arms[1].main[0]
    assert set(normalised.decisions[min(normalised.rungs)]["seen"]) == {"qk_norm=none", "qk_norm=head"}


def test_a_driver_that_died_between_two_seeds_of_one_decision_completes_it():
    search = {"mode": "grid", "axes": [NORMS], "compete": "arms", "scheduler": ASHA}
    job, store = job_of(search), memory_store()
    runner = Runner(study_of(job, store), slots=6)
    while not any(t.decisions for t in runner.study.trials.values()):
        runner.event()
    decided = [t for t in runner.study.trials.values() if t.is_stopped]
    victim = decided[-1]
    store.objects.delete(f"trials/{victim.id}/decisions")
    again = study_of(job, store)
    assert again.trials[victim.id].end == "stopped"
    assert store.trial(victim.id).decisions(again.id)[0]["unit"] == victim.arm


def test_a_trial_finished_elsewhere_is_not_compared_at_rungs_it_was_not_seen_at():
    job, store = job_of({"mode": "grid", "axes": [RATES], "scheduler": ASHA}), memory_store()
    study = study_of(job, store)
    bad = next(t for t in study.trials.values() if t.point == "lr=0.01")
    attempt = store.trial(bad.id).new_attempt({})
    # Trained to its end without rungs: its final loss is far below what anyone has at the first rung.
    attempt.write_status(FINISHED, 9, {"kind": "completed"}, {"val_loss": 5.2, "tokens": 1152})
    study = finish(job, store).study
    best = next(t for t in study.trials.values() if t.point == "lr=0.003" and t.role == "tuning")
    assert best.end == FINISHED
    assert "lr=0.01" not in best.decisions[128]["seen"]
    assert {t.spec.train.optimizer.lr for t in study.main_trials()} == {3e-3}


def test_an_asynchronous_rung_counts_what_it_has_stopped():
    rates = {**RATES, "values": [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3]}
    search = {"mode": "grid", "axes": [rates], "scheduler": {**ASHA, "sync": False}}
    study = study_of(job_of(search), memory_store())
    losses = [1.0, 2.0, 3.0, 4.0, 5.0, 1.5]  # of six seen, the best two go on
    said = []
    for loss in losses:
        trial = study.next_task().trial
        said.append(study.reported(trial.id, {"step": 1, "tokens": 128, "val_loss": loss}))
    assert said == ["continue", "stop", "stop", "stop", "stop", "continue"]
    assert len(trial.decisions[128]["seen"]) == 6


@pytest.mark.parametrize(("grace", "rungs"), [(1100, ()), (1000, (1024,)), (100, (128, 384, 1024))])
def test_rungs_are_whole_steps_before_the_last(grace, rungs):
    """A trial has 9 steps of 128 tokens; its last one ends it, whatever the rule says."""
    search = {"mode": "grid", "axes": [RATES], "scheduler": {**ASHA, "grace_tokens": grace}}
    study = finish(job_of(search), memory_store()).study
    assert {t.rungs for t in study.trials.values() if t.role == "tuning"} == {rungs}


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_rates_are_handed_out_from_the_middle_of_the_grid(n_seeds):
    rates = {**RATES, "values": [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 7e-3]}
    study = study_of(job_of({"mode": "grid", "axes": [rates], "tuning_seeds": n_seeds}), memory_store())
    arm = study.phases[0].arms[0]
    handed = [study.next_task().trial for _ in arm.tuning]
    assert handed == arm.tuning_in_turn
    expected = [4e-3, 2e-3, 6e-3, 1e-3, 3e-3, 5e-3, 7e-3]
    assert [t.spec.train.optimizer.lr for t in handed] == [lr for lr in expected for _ in range(n_seeds)]


@given(st.integers(0, 200))
def test_middle_first_is_a_permutation_that_halves(n):
    order = middle_first(n)
    assert sorted(order) == list(range(n))
    assert order[:1] == ([n // 2] if n else [])
    for k in range(1, n.bit_length()):  # after 2^k - 1 of them no gap is wider than a 2^k-th
        seen = sorted({-1, *order[: 2**k - 1], n})
        assert max(b - a - 1 for a, b in itertools.pairwise(seen)) <= n / 2**k


def test_an_asynchronous_rung_saves_most_of_a_grid_in_rising_order():
    values = [
        float(f"{1e-4 * 2**i:.3g}") for i in range(10)
    ]  # the best is the sixth: all before it rise to it
    search = {"mode": "grid", "axes": [{**RATES, "values": values}], "scheduler": {**ASHA, "sync": False}}
    runner = finish(job_of(search), memory_store(), slots=1)
    tuning = runner.study.phases[0].arms[0].tuning
    assert sum(t.end == FINISHED for t in tuning) <= 3
    assert {t.spec.train.optimizer.lr for t in runner.study.main_trials()} == {3.2e-3}


def test_a_paused_trial_is_handed_out_again_only_when_its_worker_has_left():
    job, store = job_of({"mode": "grid", "axes": [RATES], "scheduler": ASHA}), memory_store()
    study = study_of(job, store)
    trials = [study.next_task().trial for _ in range(3)]
    rows = [{"step": 1, "tokens": 128, "val_loss": loss} for loss in (2.0, 3.0, 4.0)]
    assert [study.reported(t.id, r) for t, r in zip(trials, rows)] == ["pause", "pause", "stop"]
    assert study.next_task() == "wait"  # the first may go on, but its worker has not let go
    study.ended(trials[0].id)
    assert study.next_task().trial is trials[0]
    study.ended(trials[1].id)
    study.ended(trials[2].id)
    assert [t.end for t in trials] == [None, "stopped", "stopped"]
    assert study.reported(trials[2].id, rows[2]) == "stop", "a late report changes nothing"


def test_a_paused_trial_with_an_undecided_rung_waits_after_a_restart_too():
    job, store = job_of({"mode": "grid", "axes": [RATES], "scheduler": ASHA}), memory_store()
    runner = Runner(study_of(job, store), slots=1)
    while sum(t.state == "paused" for t in runner.study.trials.values()) < 2:
        runner.event()
    again = study_of(job, store)
    states = sorted(t.state for t in again.trials.values())
    assert states.count("paused") == 2
    handed = again.next_task().trial
    assert not handed.rung_values


@given(
    n_tokens=st.integers(1, 10**12),
    eta=st.integers(2, 10),
    grace=st.none() | st.integers(1, 10**9),
)
@settings(deadline=None, derandomize=True)
def test_rungs_rise_by_the_factor_and_stay_below_the_end(n_tokens, eta, grace):
    rungs = Asha(kind="asha", reduction_factor=eta, grace_tokens=grace).rungs(n_tokens)
    assert all(0 < r < n_tokens for r in rungs)
    assert all(b == a * eta for a, b in itertools.pairwise(rungs))


@given(
    st.dictionaries(st.text(max_size=3), st.none() | st.floats(allow_nan=True), min_size=1, max_size=12),
    st.integers(2, 5),
)
@settings(deadline=None, derandomize=True)
def test_a_rung_keeps_its_best_share_and_no_unit_that_diverged(values, eta):
    asha = Asha(kind="asha", reduction_factor=eta)
    goes_on = {u for u in values if not asha.judge(u, 1, values).stop}
    sound = {u: v for u, v in values.items() if v is not None and v - v == 0}
    assert goes_on <= set(sound)
    n_kept = max(1, len(values) // eta)
    cutoff = sorted(sound.values())[:n_kept]
    assert goes_on == {u for u, v in sound.items() if cutoff and v <= cutoff[-1]}
