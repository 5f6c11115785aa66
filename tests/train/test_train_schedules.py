import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.evaluate.config import EvaluateConfig
from fabric.train.calendar import calendar, step_of
from fabric.train.config import ScheduleConfig, TrainConfig
from fabric.train.schedules.constant import Constant
from fabric.train.schedules.cosine import Cosine
from fabric.train.schedules.wsd import WarmupStableDecay
from models.parts import parts_in

SCHEDULES = parts_in("fabric.train.schedules", ScheduleConfig)


def values(schedule, n):
    return [schedule.multiplier(step, n) for step in range(n)]


def test_constant_warms_up_and_stays():
    assert values(Constant(kind="constant", warmup=4), 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert values(Constant(kind="constant", warmup=0), 2) == [1, 1]


def test_warmup_below_one_is_a_fraction_of_the_steps():
    assert Constant(kind="constant", warmup=0.5).warmup_steps(10) == 5
    assert Constant(kind="constant", warmup=1).warmup_steps(10) == 1


def test_cosine_goes_from_the_peak_to_final():
    got = values(Cosine(kind="cosine", warmup=2, final=0.1), 7)
    assert got[:2] == [0.5, 1.0]
    want = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(5)]
    assert got[2:] == pytest.approx(want, abs=1e-12)
    assert got[-1] == pytest.approx(0.1, abs=1e-12)


def test_wsd_is_flat_and_then_linear():
    got = values(WarmupStableDecay(kind="wsd", warmup=2, decay=0.4, final=0.0), 10)
    assert got == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert values(WarmupStableDecay(kind="wsd", warmup=0, final=0.5), 1) == [0.75]


def test_every_schedule_lets_a_single_step_learn():
    for kind, part in SCHEDULES.items():
        assert part(kind=kind).multiplier(0, 1) > 0


@pytest.mark.parametrize("kind", SCHEDULES)
@settings(deadline=None, derandomize=True, max_examples=50)
@given(n=st.integers(1, 300), warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 400)))
def test_every_schedule_stays_between_zero_and_the_peak(kind, n, warmup):
    schedule = SCHEDULES[kind](kind=kind, warmup=warmup)
    got = values(schedule, n)
    assert all(0 <= value <= 1 + 1e-12 for value in got)
    w = min(schedule.warmup_steps(n), n)
    assert got[:w] == [(i + 1) / schedule.warmup_steps(n) for i in range(w)]


def config(**changes):
    base = {"batch_size": 4, "optimizer": {"kind": "adamw", "lr": 1e-3}, "schedule": {"kind": "cosine"}}
    return TrainConfig.model_validate({**base, **changes})


def test_length_is_given_once_and_in_tokens_of_the_global_batch():
    assert config(tokens="2k").n_steps(seq_len=10, n_params=99) == 50
    assert config(tokens_per_param=20).n_steps(seq_len=10, n_params=100) == 50
    assert config(tokens=1).n_steps(seq_len=10, n_params=1) == 1
    for both in ({}, {"tokens": 5, "tokens_per_param": 1}):
        with pytest.raises(ValueError, match="once"):
            config(**both)
    with pytest.raises(ValueError, match=r"does not divide.*use 1, 2 or 4"):
        config(tokens=5, micro_batch_size=3)


def test_calendar_by_times_includes_the_end():
    got = calendar(10, 100, EvaluateConfig(times=4))
    assert got.scheduled == {2, 5, 8, 10}
    assert calendar(2, 100, EvaluateConfig(times=8)).scheduled == {1, 2}


def test_calendar_by_tokens_and_rungs_round_up_to_steps():
    got = calendar(10, 100, EvaluateConfig(every_tokens=250), rung_tokens=[150, 300, 1000, 5000])
    assert got.scheduled == {3, 5, 8, 10}
    assert got.rungs == {2, 3}
    assert [s for s in range(1, 11) if got.evaluated(s)] == [2, 3, 5, 8, 10]
    assert calendar(10, 100, EvaluateConfig(every_tokens=301)).evaluated(10)
    assert [step_of(t, 100) for t in (1, 100, 101)] == [1, 1, 2]
