"""Trials that read a stream: killed and resumed they lose no row, and repeat at most one checkpoint interval."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from train_kit import (
    SEQ_LEN,
    Reports,
    die_before_step,
    losses,
    make_trial,
    run_child,
    train_in_child,
    write_text,
)

from fabric.data import DataConfig, prepare
from fabric.store import Store, TrialRecord
from fabric.train import loop
from fabric.train.directive import CheckpointAndExit

STEPS, KEPT_EVERY = 24, 5


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    write_text(folder / "text.txt", n_documents=200)
    data = DataConfig.model_validate(
        {
            "corpus": str(folder / "text.txt"),
            "tokenizer": "bytes",
            "seq_len": SEQ_LEN,
            "stream": {"unit_bytes": 2048, "held_out_bytes": 2048},
        }
    )
    return data, prepare(data, folder / "cache")


def trial_of(streamed, **options):
    every = {"every_steps": KEPT_EVERY, "every_seconds": None}
    return make_trial(*streamed, **{"steps": STEPS, "checkpoint": every, **options})


def logs(record: TrialRecord) -> list[dict[str, Any]]:
    """What each attempt wrote down of the rows it read, oldest first."""
    found = []
    for attempt in record.attempt_numbers():
        prefix = f"{record.prefix}/attempts/{attempt}"
        names = sorted(n for n in record.objects.list(prefix) if "/rows-" in n)
        found += [{"attempt": attempt, **json.loads(record.objects.get(n) or b"")} for n in names]
    return found


def rows_of(log: dict[str, Any]) -> list[tuple[int, int]]:
    return [(p, row) for rank in log["ranks"] for p, _, first, end in rank for row in range(first, end)]


def hashes(record: TrialRecord) -> dict[int, str]:
    """What each step read."""
    return {row["step"]: row["data_hash"] for row in record.metrics()}


def test_a_killed_trial_goes_on_with_the_next_row_and_the_same_losses(streamed, tmp_path):
    trial = trial_of(streamed)
    train_in_child(trial, tmp_path / "whole", streamed[1])
    whole = Store(tmp_path / "whole").trial(trial.id)
    assert run_child(die_before_step, trial, tmp_path / "killed", streamed[1], 13) == -signal.SIGKILL
    train_in_child(trial, tmp_path / "killed", streamed[1])
    killed = Store(tmp_path / "killed").trial(trial.id)
    assert dict(losses(killed)) == dict(losses(whole))
    assert [r["data_hash"] for r in whole.metrics()] == list(
        {r["step"]: r["data_hash"] for r in killed.metrics()}.values()
    )
    # The kept history read every row once, and the undisturbed run's.
    wanted = [row for log in logs(whole) for row in rows_of(log)]
    assert len(wanted) == len(set(wanted)) == STEPS * trial.train.batch_size
    assert [(log["attempt"], log["after_step"], log["to_step"]) for log in logs(killed)] == [
        (1, 0, 5), (1, 5, 10), (2, 10, 15), (2, 15, 20), (2, 20, 24)
    ]  # fmt: skip
    assert [row for log in logs(killed) for row in rows_of(log)] == wanted
    resumed = killed.provenance(2)
    assert resumed["order"] == "approximate"
    assert 12 - resumed["resumed_step"] < KEPT_EVERY, "what is repeated"
    assert killed.status().final["order"] == "approximate"


def test_the_order_is_part_of_a_trial_s_identity(streamed):
    trial = trial_of(streamed)
    exact = trial.model_copy(update={"data": trial.data.model_copy(update={"stream": None})})
    assert trial.identity()["order"] == "approximate"
    assert "order" not in exact.identity()
    assert trial.id != exact.id


def test_a_pause_and_threads_that_end(streamed, tmp_path):
    import threading

    before = threading.active_count()
    trial = trial_of(streamed, optimizer={"kind": "adamw", "lr": 1e-3})
    record = Store(tmp_path).trial(trial.id)
    loop.run(trial, record, streamed[1], report=Reports({12: CheckpointAndExit()}))
    assert threading.active_count() == before
    outcome = loop.run(trial, record, streamed[1])
    assert (outcome.state, outcome.step) == ("finished", STEPS)
    rows = [row for log in logs(record) for row in rows_of(log)]
    assert len(rows) == len(set(rows)) == STEPS * trial.train.batch_size
    assert [log["to_step"] for log in logs(record)] == [5, 10, 12, 15, 20, 24]
