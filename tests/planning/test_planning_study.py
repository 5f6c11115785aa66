"""A study's logic without training: expansion, tuning, phases, dedupe, failures, and what is handed out when."""

from __future__ import annotations

import math

import pytest
from planning_kit import (
    ASHA,
    BASE,
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

from fabric.job.document import JobError
from fabric.planning.study import Machine, Study
from fabric.store import FAILED, FINISHED, Store

GRID = {"mode": "grid", "axes": [NORMS]}
PHASES = {
    "mode": "phases",
    "phases": [{"name": "norm", "axes": [NORMS], "keep": 2}, {"name": "qk", "axes": [QK]}],
}


def test_a_grid_trains_every_arm_and_seed_once_and_reads_the_test_split_after(tmp_path):
    runner = finish(job_of({"mode": "grid", "axes": [NORMS, QK]}), Store(tmp_path))
    assert len(runner.started) == len(set(runner.started)) == 3 * 2 * 2
    assert sorted(runner.tests) == sorted(runner.started)
    assert runner.study.finished()
    again = study_of(runner.study.job, Store(tmp_path))
    assert again.finished()
    assert again.next_task() == "done"
    assert winners(again) == winners(runner.study) == ["norm_placement=post + qk_norm=head"]


def test_a_finished_study_is_finished_only_with_its_test_readings():
    store = memory_store()
    runner = Runner(study_of(job_of(GRID), store))
    while not runner.tests:
        runner.event()
    assert not study_of(runner.study.job, store).finished()
    runner.run()
    assert study_of(runner.study.job, store).finished()


def test_the_base_is_the_baseline_of_a_grid_and_another_may_be_asked_for():
    base = {**BASE, "model": {**BASE["model"], "norm_placement": "post"}}
    assert study_of(job_of(GRID, base), memory_store()).phases[0].baseline == "norm_placement=post"
    asked = job_of({**GRID, "baseline": "norm_placement=sandwich"})
    assert study_of(asked, memory_store()).phases[0].baseline == "norm_placement=sandwich"
    with pytest.raises(JobError, match="did you mean 'norm_placement=post'"):
        study_of(job_of({**GRID, "baseline": "norm_placement=pos"}), memory_store())


def test_arms_of_one_configuration_are_trained_once():
    search = {
        "mode": "grid",
        "axes": [
            {
                "arms": [
                    {"name": "base"},
                    {"name": "same", "set": {"model.norm_placement": "pre"}},
                    {"name": "other", "set": {"model.norm_placement": "post"}},
                ]
            }
        ],
    }
    runner = finish(job_of(search), memory_store())
    assert len(runner.started) == 4
    assert [len(a.main or []) for a in runner.study.phases[0].arms] == [2, 2, 2]


def test_a_later_phase_takes_over_what_an_earlier_one_trained():
    runner = finish(job_of(PHASES), memory_store())
    # norm: 3 arms; qk: (2 kept) x 2, of which the two without qk_norm are there already. Two seeds each.
    assert len(runner.started) == (3 + 2) * 2


def test_keeping_two_crosses_the_greedy_blind_spot():
    kept = finish(job_of(PHASES), memory_store()).study
    assert winners(kept)[0] == "norm_placement=pre"
    assert list(kept.phases[0].decision["kept"]) == ["norm_placement=pre", "norm_placement=post"]
    assert winners(kept)[1] == "norm_placement=post + qk_norm=head"
    greedy = [{**PHASES["phases"][0], "keep": 1}, PHASES["phases"][1]]
    study = finish(job_of({**PHASES, "phases": greedy}), memory_store()).study
    assert winners(study) == ["norm_placement=pre", "qk_norm=head"] or winners(study)[1] == "qk_norm=none"
    assert study._carried[0].overrides[0].value == "pre"  # never finds post-norm with qk_norm


def test_a_phase_is_skipped_where_its_condition_does_not_hold():
    phases = [
        {"name": "norm", "axes": [NORMS]},
        {"name": "window", "axes": [{"path": "model.mixer.window", "values": [None, 8]}],
         "when": {"model.norm_placement": "post"}},
        {"name": "qk", "axes": [QK], "when": {"train.optimizer.lr": "3e-3", "train.tokens": 1152}},
    ]  # fmt: skip
    study = finish(job_of({"mode": "phases", "phases": phases}), memory_store()).study
    assert study.skipped == ["window"]
    assert [p.name for p in study.phases] == ["norm", "qk"]
    assert study.finished()


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ({"model.mixr.kind": "gqa"}, "did you mean 'model.mixer.kind'"),
        ({"model.mixer.kind": "gpa"}, "would never run"),
        ({"model.norm_placement": True}, "would never run"),
    ],
)
def test_a_condition_that_can_never_hold_is_an_error(when, words):
    phases = [{"name": "norm", "axes": [NORMS]}, {"name": "qk", "axes": [QK], "when": when}]
    with pytest.raises(JobError, match=words):
        study_of(job_of({"mode": "phases", "phases": phases}), memory_store())


def test_an_arm_that_does_not_fit_what_was_adopted_is_left_out_and_said():
    groups = {"path": "model.mixer.n_kv_heads", "values": [2, 4]}
    heads = {"path": "model.mixer.n_heads", "values": [2, 4]}
    phases = [{"name": "groups", "axes": [groups]}, {"name": "heads", "axes": [heads]}]

    def four_groups_are_better(trial, tokens):
        return 3.0 - 0.1 * trial.spec.model.mixer.n_kv_heads + 0.001 * trial.seed

    study = finish(
        job_of({"mode": "phases", "phases": phases}), memory_store(), loss=four_groups_are_better
    ).study
    assert winners(study) == ["n_kv_heads=4", "n_heads=4"]
    (warning,) = study.warnings
    assert "heads/n_heads=2: left out" in warning
    assert "n_kv_heads=4" in warning


def test_a_mistake_in_the_last_phase_shows_at_once():
    phases = [{"name": "norm", "axes": [NORMS]}, {"name": "heads", "axes": [{"path": "model.mixer.n_heads",
               "values": [4, 3]}]}]  # fmt: skip
    with pytest.raises(JobError, match="n_heads=3"):
        study_of(job_of({"mode": "phases", "phases": phases}), memory_store())


def test_a_phase_without_the_adopted_configuration_says_which_arm_is_its_baseline():
    phases = [{"name": "norm", "axes": [NORMS]},
              {"name": "window", "axes": [{"path": "model.mixer.window", "values": [8, 16]}]}]  # fmt: skip
    study = finish(job_of({"mode": "phases", "phases": phases}), memory_store()).study
    assert study.phases[1].baseline == "window=8"
    assert any("window=8 is its baseline" in w for w in study.warnings)


def test_more_kept_than_there_are_arms_is_an_error():
    phases = [{"name": "norm", "axes": [NORMS], "keep": 4}]
    with pytest.raises(JobError, match="more than the phase's 3 arms"):
        study_of(job_of({"mode": "phases", "phases": phases}), memory_store())


# -- rates --------------------------------------------------------------------------------------------------------


def test_the_rate_is_chosen_on_tuning_seeds_alone():
    runner = finish(job_of({**GRID, "axes": [NORMS, RATES], "tuning_seeds": 2}), memory_store())
    for arm in runner.study.phases[0].arms:
        assert {t.seed for t in arm.tuning} == {1000, 1001}
        assert len(arm.tuning) == 6
        assert [(t.seed, t.spec.train.optimizer.lr) for t in arm.main] == [(0, 3e-3), (1, 3e-3)]
        assert all(t.rungs == () for t in arm.main)
    assert runner.study.warnings == []
    assert len(runner.tests) == 6, "the test split is read for the result's trials only"


def test_a_rate_at_the_grids_edge_warns():
    rates = {**RATES, "values": [3e-3, 1e-2, 3e-2]}
    study = finish(job_of({**GRID, "axes": [rates]}), memory_store()).study
    (warning,) = study.warnings
    assert "3e-3, is at the edge of the grid" in warning
    again = study_of(study.job, study.store)
    assert again.warnings == study.warnings, "a warning outlives the run"


def test_two_nuisance_axes_are_tuned_together():
    clip = {"path": "train.clip_norm", "values": [0.5, 1.0], "role": "nuisance"}

    def clipped_is_better(trial, tokens):
        return bowl(trial, tokens) + 0.5 * trial.spec.train.clip_norm

    runner = finish(job_of({**GRID, "axes": [NORMS, RATES, clip]}), memory_store(), loss=clipped_is_better)
    (chosen,) = {(t.spec.train.optimizer.lr, t.spec.train.clip_norm) for t in runner.study.main_trials()}
    assert chosen == (3e-3, 0.5)


@pytest.mark.parametrize("scheduler", [{"kind": "fifo"}, ASHA, {**ASHA, "sync": False}])
def test_an_arm_none_of_whose_rates_trains_is_out(scheduler):
    def sandwich_diverges(trial, tokens):
        return None if trial.spec.model.norm_placement == "sandwich" else bowl(trial, tokens)

    search = {**GRID, "axes": [NORMS, RATES], "scheduler": scheduler}
    runner = finish(job_of(search), memory_store(), loss=sandwich_diverges, slots=3)
    out = [a for a in runner.study.phases[0].arms if a.out]
    assert [a.arm.name for a in out] == ["norm_placement=sandwich"]
    assert winners(runner.study) == ["norm_placement=pre"]
    assert runner.study.finished()
    assert study_of(runner.study.job, runner.study.store).finished()


def test_when_everything_diverges_the_study_still_ends():
    search = {**PHASES, "axes": [RATES], "scheduler": ASHA}
    runner = finish(job_of(search), memory_store(), loss=lambda trial, tokens: None)
    assert runner.study.finished()
    assert winners(runner.study)[0] == "norm_placement=pre"
    assert "the baseline stays" in runner.study.phases[0].decision["reason"]


def test_a_rate_that_diverged_is_worst_and_cannot_be_chosen():
    def high_rates_diverge(trial, tokens):
        return None if trial.spec.train.optimizer.lr > 2e-3 else bowl(trial, tokens)

    for scheduler in ({"kind": "fifo"}, ASHA, {**ASHA, "sync": False}):
        search = {"mode": "grid", "axes": [RATES], "scheduler": scheduler}
        study = finish(job_of(search), memory_store(), loss=high_rates_diverge).study
        assert {t.spec.train.optimizer.lr for t in study.main_trials()} == {1e-3}, scheduler


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([RATES, {**RATES, "path": "train.optimizer.lr"}], "path train.optimizer.lr is listed twice"),
        ([{**RATES, "values": ["1e-3", 0.001]}], "the same as"),
        ([RATES, {"arms": [{"name": "a", "set": {"train.optimizer.lr": 1}}]}], "a nuisance axis tunes"),
    ],
)
def test_settings_that_undo_each_other_are_errors(axes, words):
    with pytest.raises(JobError, match=words):
        study_of(job_of({"mode": "grid", "axes": axes}), memory_store())


def test_a_scheduler_without_anything_to_compare_is_mentioned():
    assert "nothing to compare" in study_of(job_of({**GRID, "scheduler": ASHA}), memory_store()).warnings[0]
    assert "no effect" in study_of(job_of({**GRID, "compete": "arms"}), memory_store()).warnings[0]


# -- decisions and failures -----------------------------------------------------------------------------------------


def test_decisions_are_taken_once_whatever_the_store_says_later():
    store = memory_store()
    study = finish(job_of(PHASES), store).study
    before = records(store, study.id)
    for trial in study.main_trials():  # other numbers would decide otherwise
        attempt = store.trial(trial.id).new_attempt({})
        worse = 9.0 if trial.spec.model.norm_placement != "sandwich" else 0.1
        attempt.write_status(FINISHED, 9, {"kind": "completed"}, {"val_loss": worse, "tokens": 1152})
    again = finish(job_of(PHASES), store)
    assert again.started == []
    assert records(store, study.id) == before
    assert winners(again.study) == winners(study)


def test_another_search_on_the_same_store_is_another_study_and_shares_its_trials():
    store = memory_store()
    first = finish(job_of(GRID), store)
    second = finish(job_of({**GRID, "seeds": 3}), store)
    assert second.study.id != first.study.id
    assert len(second.started) == 3  # the third seed of each arm
    renamed = job_of(GRID, resources={"max_retries": 7}, about="other words")
    assert study_of(renamed, store).id == first.study.id


def test_a_trial_that_fails_is_tried_again_and_then_given_up():
    store = memory_store()
    study = study_of(job_of(GRID, resources={"max_retries": 2}), store)
    victim, other = (t.id for t in study.phases[0].arms[0].main), study.phases[0].arms[1].main[0].id
    victim = next(victim)
    runner = Runner(study)
    runner.fails = {victim: 3, other: 2}
    runner.run()
    assert runner.started.count(victim) == runner.started.count(other) == 3
    assert study.trials[victim].end == FAILED
    assert study.trials[other].end == FINISHED
    assert [w for w in study.warnings if "failed" in w] == [
        "main/norm_placement=pre seed 0 failed: RuntimeError: it broke"
    ]
    assert study.finished()
    # The next run of the same command tries it again; what was decided stays.
    before = records(store, study.id)
    again = study_of(study.job, store)
    assert not again.finished()
    later = Runner(again)
    later.run()
    assert later.started == [victim]
    assert later.tests == [victim]
    assert again.finished()
    assert {k: v for k, v in records(store, study.id).items() if k in before} == before


def test_an_arm_all_of_whose_trials_fail_loses_and_the_study_goes_on():
    study = study_of(job_of(PHASES, resources={"max_retries": 0}), memory_store())
    runner = Runner(study)
    runner.fails = {t.id: 1 for t in study.phases[0].arms[1].main}
    runner.run()
    assert study.phases[0].decision["verdict"]["norm_placement=post"] == "diverged"
    assert study.phases[0].decision["kept"][0] == "norm_placement=pre"


DECAYS = {"path": "train.optimizer.weight_decay", "values": [0.01, 0.1, 0.2], "role": "nuisance"}


@pytest.mark.parametrize("axis", [RATES, DECAYS], ids=["lr", "weight_decay"])
def test_a_point_that_failed_on_one_tuning_seed_is_out(axis):
    best = axis["values"][1]
    search = {"mode": "grid", "axes": [axis], "tuning_seeds": 2}
    study = study_of(job_of(search, resources={"max_retries": 0}), memory_store())

    def loss(trial, tokens):
        return 3.0 + (getattr(trial.spec.train.optimizer, axis["path"].split(".")[-1]) != best)

    runner = Runner(study, loss)
    trials = [t for t in study.phases[0].arms[0].tuning if t.point.endswith(f"={best}")]
    assert len(trials) == 2
    runner.fails = {trials[0].id: 1}
    runner.run()
    assert trials[1].end == FINISHED
    assert {t.point for t in study.main_trials()}.isdisjoint({trials[0].point})
    again = study_of(study.job, study.store)
    assert again.finished(), "a rate that is chosen needs no tuning trial any more"


def test_running_out_of_memory_halves_the_micro_batch_and_is_no_failure():
    store = memory_store()
    study = study_of(job_of({"mode": "grid", "axes": [QK], "seeds": 1}, resources={"max_retries": 0}), store)
    trial = study.phases[0].arms[0].main[0]
    sizes = []
    for _ in range(2):
        task = study.next_task()
        assert task.trial is trial
        study.ended(trial.id, "the memory monitor killed it", cause="memory")
        sizes.append(study.registry.micro_batch_size(trial))
    assert sizes == [2, 1]
    again = study_of(study.job, store)
    task = again.next_task()
    assert again.registry.micro_batch_size(task.trial) == 1
    again.ended(task.trial.id, "the memory monitor killed it", cause="memory")
    assert again.trials[trial.id].end == FAILED, "a micro-batch of one cannot be smaller"


def test_the_micro_batch_that_is_halved_is_a_rank_s():
    """Of four sequences on two workers each has two: two at once would be as before."""
    job = job_of({"mode": "grid", "axes": [QK], "seeds": 1}, resources={"workers": 2})
    machine = Machine(ranks=job.config.resources.ranks)
    study = Study(job, memory_store(), lambda data: "0" * 64, machine)
    task = study.next_task()
    study.ended(task.trial.id, "the memory monitor killed it", cause="memory")
    assert study.registry.micro_batch_size(task.trial) == 1


def test_preemptions_are_counted_apart_from_failures():
    limits = {"max_retries": 0, "max_preemptions": 2}
    study = study_of(job_of({"mode": "grid", "axes": [QK], "seeds": 1}, resources=limits), memory_store())
    trial = study.phases[0].arms[0].main[0]
    for _ in range(3):
        assert trial.state == "waiting"
        assert study.next_task().trial is trial
        study.ended(trial.id, "its node was taken away", cause="preemption")
    assert (trial.failures, trial.preemptions, trial.end) == (0, 3, FAILED)
    assert {d["cause"] for d in study.registry.record(trial).decisions(f"{study.id}-failure-")} == {
        "preemption"
    }


def test_a_test_reading_that_failed_is_tried_again_then_said_and_done_by_the_next_run():
    store = memory_store()
    runner = Runner(study_of(job_of(GRID, resources={"max_retries": 1}), store))
    while not runner.tests:
        runner.event()
    task = runner.study.next_task()
    for _ in range(2):
        runner.study.tested(task.trial.id, "OSError: no space left")
        assert runner.study.next_task().trial is task.trial or runner.study.untested == {task.trial.id}
    assert "the test split was not read" in runner.study.warnings[0]
    runner.run()
    assert not runner.study.finished()
    assert task.trial.id in finish(runner.study.job, store).tests


def test_matched_arms_are_solved_and_what_is_left_is_warned_about():
    arms = [{"name": "gqa"}, {"name": "mha", "set": {"model.mixer": {"kind": "mha", "n_heads": 4}}}]
    study = study_of(job_of({"mode": "grid", "axes": [{"arms": arms}], "match": "params"}), memory_store())
    base, mha = (a.configuration.model for a in study.phases[0].arms)
    assert base.ffn.d_ff == 64
    assert mha.ffn.d_ff < 64
    assert all(abs(a.mismatch) < 0.03 for a in study.phases[0].arms)
    assert {t.spec.model for t in study.phases[0].arms[1].main} == {mha}
    coarse = [{"name": "gqa"}, {"name": "wide", "set": {"model.mixer": {"kind": "mha", "n_heads": 4}}}]
    state = study_of(job_of({"mode": "grid", "axes": [{"arms": coarse}], "match": "state"}), memory_store())
    assert state.phases[0].arms[1].configuration.model.mixer.head_dim == 4
    assert math.isclose(state.phases[0].arms[1].mismatch, 0.0)
