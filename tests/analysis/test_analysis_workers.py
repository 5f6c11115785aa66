"""Efficiencies by number of workers: which trials are compared, and with what."""

from __future__ import annotations

import io

import pytest
from analysis_kit import row
from rich.console import Console

from fabric.analysis.workers import Ran, workers_rows
from fabric.printing_workers import print_workers
from fabric.store import FINISHED, Store

SEQ_LEN = 100


def timed(arm, workers, batch, step, *, work="w", engine="torch", trial=None, exposed=None, **changes):
    """A finished trial whose step took so many seconds."""
    metrics = {"tokens_per_second": batch * SEQ_LEN / step}
    if exposed is not None:
        metrics |= {"exposed_allreduce_fraction": exposed, "exposed_allreduce_seconds": exposed * step}
    ran = Ran(trial or f"{arm}-{workers}-{batch}", work, engine, workers, batch, SEQ_LEN)
    return row(arm, metrics=metrics, ran=ran, **changes)


def efficiencies(*folders):
    return {(r.engine, r.workers, r.batch_size): (r.strong, r.weak) for r in workers_rows(folders)}


def test_strong_at_the_same_batch_weak_at_the_same_batch_a_worker():
    found = efficiencies(
        [timed("a", 1, 8, 8.0), timed("a", 1, 4, 4.5)], [timed("a", 2, 8, 5.0), timed("a", 4, 8, 4.0)]
    )
    assert found == {
        ("torch", 1, 4): (1.0, 1.0),
        ("torch", 1, 8): (1.0, 1.0),
        ("torch", 2, 8): (8 / (2 * 5), pytest.approx(4.5 / 5)),
        ("torch", 4, 8): (8 / (4 * 4), None),  # nobody measured 2 sequences on one worker
    }


def test_only_steps_that_are_alike_are_compared():
    found = efficiencies([timed("a", 1, 8, 8.0, work="other"), timed("a", 2, 8, 5.0)])
    assert found[("torch", 2, 8)] == (None, None)


def test_a_plain_process_is_what_every_engine_is_compared_with():
    zero = "deepspeed ZeRO-1"
    plain = timed("a", 1, 8, 8.0)
    rest = [timed("a", 1, 8, 16.0, engine=zero, trial="z1"), timed("a", 2, 8, 5.0, engine=zero, trial="z2")]
    assert efficiencies([plain], rest)[(zero, 2, 8)][0] == 0.8
    assert efficiencies(rest)[(zero, 2, 8)][0] == 1.6, "without one, with one worker of the same engine"


def test_trials_are_averaged_and_those_without_a_word_left_out():
    rows = [
        timed("a", 2, 8, 4.0, trial="0", exposed=0.1),
        timed("a", 2, 8, 6.0, trial="1", exposed=0.3),
        timed("a", 2, 8, 6.0, trial="1", phase="later"),  # the same trial in another phase
        timed("a", 2, 8, 99.0, trial="2", state="stopped"),
        row("a", 3),
    ]
    (found,) = workers_rows([rows])
    assert (found.arm, found.n, found.step_seconds, found.strong) == ("a", 2, 5.0, None)
    assert found.exposed == pytest.approx(0.2)
    assert found.exposed_seconds == pytest.approx((0.4 + 1.8) / 2)


def test_trials_that_ran_alone_need_no_table():
    assert workers_rows([[timed("a", 1, 8, 8.0), row("b")]]) == []
    assert workers_rows([]) == []


SPEC = {
    "model": {"d_model": 8},
    "data": {"seq_len": 32},
    "train": {"batch_size": 4, "precision": "fp32", "optimizer": {"kind": "adamw", "lr": 0.1}},
}


def record_of(folder, *worlds, **ranks):
    record = Store(folder).trial("t")
    for world in worlds:
        who = {
            "numerics": {"fingerprint": "n"},
            "ranks": {"world": world, "engine": "torch", "zero_stage": 0, **ranks},
        }
        record.new_attempt(who).write_status("running", 1)
    return record


def test_what_a_record_says(tmp_path):
    found = Ran.read(record_of(tmp_path / "a", 2, 2), SPEC)
    assert found is not None
    assert (found.trial, found.engine, found.workers, found.batch_size, found.seq_len) == (
        "t",
        "torch",
        2,
        4,
        32,
    )
    zero = Ran.read(record_of(tmp_path / "b", 2, engine="deepspeed", zero_stage=3), SPEC)
    assert zero is not None
    assert (zero.engine, zero.work) == ("deepspeed ZeRO-3", found.work)
    slower = {**SPEC["train"], "optimizer": {"kind": "adamw", "lr": 0.5}, "batch_size": 8}
    assert Ran.read(record_of(tmp_path / "c", 1), {**SPEC, "train": slower}).work == found.work
    other = {**SPEC, "train": {**SPEC["train"], "precision": "bf16"}}
    assert Ran.read(record_of(tmp_path / "d", 1), other).work != found.work


def test_a_trial_that_lost_a_worker_on_the_way_stands_for_no_number_of_workers(tmp_path):
    assert Ran.read(record_of(tmp_path / "a", 2, 1), SPEC) is None
    old = Store(tmp_path / "b").trial("t")
    old.new_attempt({}).write_status(FINISHED, 1)
    assert Ran.read(old, SPEC) is None, "records from before ranks were written down"


@pytest.mark.parametrize("width", [50, 80, 120])
def test_every_number_of_workers_is_one_line(width):
    arms = ("norm_placement=pre", "norm_placement=sandwich")
    rows = [timed(a, n, 8, 8.0 / n, work=a, trial=f"{a}{n}", exposed=0.1) for a in arms for n in (1, 2, 4)]
    console = Console(width=width, record=True, file=io.StringIO())
    print_workers(workers_rows([rows]), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert [sum(line.startswith(name) for line in lines) for name in ("pre ", "sandwich ")] == [3, 3]
    assert sum("100.0%" in line for line in lines) == 6
