"""What was trained under other numerics: marked, and with `strict` trained again without touching the old records."""

from __future__ import annotations

from planning_kit import NORMS, Runner, job_of, memory_store, study_of

from fabric.analysis.collect import study_rows

JOB = {"mode": "grid", "axes": [NORMS]}


def test_what_other_numerics_trained_counts_and_is_said():
    store, job = memory_store(), job_of(JOB)
    first = Runner(study_of(job, store), numerics="elsewhere")
    first.run()
    assert first.study.notes == []
    again = study_of(job, store)
    assert again.finished()
    assert again.id == first.study.id
    assert ["6 finished trials" in n and "--strict-numerics" in n for n in again.notes] == [True]
    assert study_rows(store, again.id).warnings == [], "all its runs are of one kind"


def test_strict_trains_it_again_in_a_study_of_its_own():
    store, job = memory_store(), job_of(JOB)
    loose = Runner(study_of(job, store), numerics="elsewhere", loss=lambda trial, tokens: 99.0)
    loose.run()
    strict = Runner(study_of(job, store, strict=True))
    assert not strict.study.finished()
    assert strict.study.id != loose.study.id
    strict.run()
    assert sorted(strict.started) == sorted(loose.started)
    assert strict.study.notes == []
    assert study_of(job, store, strict=True).finished()
    for study, losses in ((loose.study, {99.0}), (strict.study, None)):
        rows = study_rows(store, study.id).rows
        seen = {r.metrics["val_loss"] for r in rows}
        assert len(rows) == 6
        assert all("test_loss" in r.metrics for r in rows)
        assert seen == losses if losses else 99.0 not in seen


def test_strict_does_not_go_on_from_another_machines_checkpoint():
    store, job = memory_store(), job_of(JOB)
    study = study_of(job, store)
    trial = study.next_task().trial
    attempt = study.registry.record(trial).new_attempt({"numerics": {"fingerprint": "elsewhere"}})
    attempt.save_checkpoint(3, {"weights": b"x"}, {}, keep_last=1)
    attempt.write_metrics([{"step": 3, "val_loss": 1.0}])
    strict = study_of(job, store, strict=True)
    record = strict.registry.record(strict.next_task().trial)
    assert record.id == trial.id
    assert record.checkpoints() == []
    assert record.metrics() == []
    assert record.status() is None
    assert record.new_attempt({}).number == 2, "the other one's attempt is not overwritten"


def test_a_table_that_mixes_numerics_says_which_arms_are_of_which():
    store, job = memory_store(), job_of(JOB)
    runner = Runner(study_of(job, store), numerics="aaa")
    runner.run(events=8)
    runner.numerics = "bbb"
    runner.run()
    (warning,) = study_rows(store, runner.study.id).warnings
    assert warning.startswith("main: compares runs trained under different numerics (aaa: ")
    assert "bbb: " in warning
    assert "--strict-numerics" in warning
