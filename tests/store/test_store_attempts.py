"""Run records: attempts and their leases, rows over several attempts, checkpoints, decisions."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.store import FINISHED, RUNNING, STOPPED, Store


@pytest.fixture
def store(new_root: Callable[[], str]) -> Store:
    return Store(new_root())


def test_create_writes_once_whoever_asks(store: Store) -> None:
    objects = store.objects
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: objects.create("a/lease", str(i).encode()), range(40)))
    assert sum(won) == 1
    assert objects.get("a/lease") == str(won.index(True)).encode()


def test_every_attempt_has_a_number_of_its_own(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda i: store.trial("t").new_attempt({"i": i}).number, range(12)))
    assert sorted(numbers) == list(range(1, 13))


def test_a_zombie_writes_nowhere_but_under_its_own_attempt(store: Store) -> None:
    record = store.trial("t")
    zombie, heir = record.new_attempt({}), record.new_attempt({"resumed_step": 0})
    heir.write_metrics([{"step": 1, "loss": 1.0}])
    heir.write_status(FINISHED, 1, {"kind": "completed"}, {"val_loss": 1.0})
    before = {k: store.objects.get(k) for k in store.objects.list(heir.prefix)}
    zombie.write_metrics([{"step": 1, "loss": 9.0}])
    zombie.write_status(STOPPED, 1)
    zombie.save_checkpoint(1, {"w": b"old"}, {}, keep_last=1)
    assert {k: store.objects.get(k) for k in store.objects.list(heir.prefix)} == before
    assert record.status().state == FINISHED  # type: ignore[union-attr]
    assert [r["loss"] for r in record.metrics()] == [1.0]


def test_rows_of_a_resumed_attempt_replace_what_came_after_its_start(store: Store) -> None:
    record = store.trial("t")
    first = record.new_attempt({"resumed_step": 0})
    first.write_metrics([{"step": s, "by": 1} for s in (1, 2)])
    first.write_metrics([{"step": s, "by": 1} for s in (3, 4, 5)])
    record.new_attempt({"resumed_step": 3}).write_metrics([{"step": s, "by": 2} for s in (4, 5, 6)])
    assert [(r["step"], r["by"]) for r in record.metrics()] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 2),
        (5, 2),
        (6, 2),
    ]


def test_a_cut_line_costs_only_itself(store: Store) -> None:
    attempt = store.trial("t").new_attempt({})
    attempt.write_metrics([{"step": 1}, {"step": 2}])
    key = f"{attempt.prefix}/metrics-000000.jsonl"
    store.objects.put(key, (store.objects.get(key) or b"")[:-6])
    assert [r["step"] for r in store.trial("t").metrics()] == [1]


def test_nan_is_null_with_a_flag(store: Store) -> None:
    attempt = store.trial("t").new_attempt({})
    attempt.write_metrics([{"step": 1, "val_loss": math.nan, "x": [math.inf]}])
    assert store.trial("t").metrics() == [
        {"step": 1, "val_loss": None, "x": [None], "non_finite": ["val_loss"]}
    ]


def test_checkpoints_keep_the_last_and_pass_over_damage(store: Store) -> None:
    record = store.trial("t")
    attempt = record.new_attempt({})
    for step in (1, 2, 3):
        attempt.save_checkpoint(step, {"w": str(step).encode()}, {"s": step}, keep_last=2)
    found = record.checkpoints()
    assert [c.step for c in found] == [2, 3]
    assert record.read_checkpoint(found[-1]) == {"w": b"3"}
    store.objects.put(f"{found[-1].prefix}/w", b"4")
    assert record.read_checkpoint(found[-1]) is None, "the hash says so"
    store.objects.delete(f"{found[0].prefix}/manifest.json")
    assert [c.step for c in record.checkpoints()] == [3], "without its manifest it is no checkpoint"


def test_a_finished_attempt_ends_the_use_of_older_checkpoints(store: Store) -> None:
    record = store.trial("t")
    for step, state in ((1, RUNNING), (2, FINISHED)):
        attempt = record.new_attempt({})
        attempt.save_checkpoint(step, {"w": b"x"}, {}, keep_last=1)
        record.drop_older_checkpoints()
        assert len(record.checkpoints()) == step, "nothing is dropped before a trial has finished"
        attempt.write_status(state, step)
    record.drop_older_checkpoints()
    assert [(c.attempt, c.step) for c in record.checkpoints()] == [(2, 2)]


def test_decisions_and_evaluations_are_taken_once(store: Store) -> None:
    record = store.trial("t")
    assert record.write_decision("s-100", {"stop": True})
    assert not record.write_decision("s-100", {"stop": False})
    assert record.decision("s-100") == {"stop": True}
    record.write_evaluation("test-all", {"test_loss": 1.0})
    record.write_evaluation("test-all", {"test_loss": 2.0})
    assert record.evaluation("test-all") == {"test_loss": 1.0}
    assert store.write_study("s", "decision-0", {"winner": "a"})
    assert not store.write_study("s", "decision-0", {"winner": "b"})


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=5))
def test_merged_rows_are_one_line_of_steps(goes: list[tuple[int, int]]) -> None:
    """Whatever attempts there were, each step has one row, and the newest attempt that reached it wrote it."""
    record = Store(f"memory://{uuid.uuid4().hex}/job").trial("t")
    expected: dict[int, int] = {}
    for number, (start, n) in enumerate(goes, 1):
        start = min(start, max(expected, default=0))
        attempt = record.new_attempt({"resumed_step": start})
        attempt.write_metrics([{"step": s, "by": number} for s in range(start + 1, start + n + 1)])
        expected = {s: by for s, by in expected.items() if s <= start}
        expected |= dict.fromkeys(range(start + 1, start + n + 1), number)
    assert {r["step"]: r["by"] for r in record.metrics()} == expected
    assert [r["step"] for r in record.metrics()] == sorted(expected)
