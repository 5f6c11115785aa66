"""Figures, targets, and every bench at its smallest size; no timing is asserted."""

from __future__ import annotations

import itertools
import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.bench import bench, benches
from fabric.bench.asha import agrees, rates
from fabric.bench.measure import Figure, Measured, Sample, Setting, finish, in_turn, ratio

IN_ONE_PROCESS = ["data"]
AGAINST_OTHERS = ["generate", "memory", "step", "workers"]  # tested in files of their own
WITH_RAY = [
    "asha",
    "bounded",
    "breadth",
    "cache",
    "overhead",
    "stock",
    "groups",
    "stream",
    "warm",
]  # a Ray of their own, some of them several


def test_every_bench_has_a_line():
    found = benches()
    assert {*IN_ONE_PROCESS, *AGAINST_OTHERS, *WITH_RAY, "evaluate", "rerun"} == set(found)
    assert all(about.endswith(".") and len(about) < 120 for about in found.values())


def test_an_unknown_bench_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="no bench is named 'dta'; did you mean 'data'"):
        bench("dta")
    with pytest.raises(ValueError, match="repeats=0"):
        bench("data", repeats=0)


@settings(deadline=None, derandomize=True)
@given(repeats=st.integers(1, 7), n=st.integers(1, 4))
def test_sides_are_measured_equally_often_and_in_turn(repeats, n):
    calls: list[str] = []
    sides = {str(i): (lambda i=i: calls.append(str(i)) or float(i)) for i in range(n)}
    samples = in_turn(sides, repeats)
    assert {name: len(s.values) for name, s in samples.items()} == {str(i): repeats for i in range(n)}
    rounds = [calls[i * n : (i + 1) * n] for i in range(repeats)]
    assert all(sorted(r) == sorted(sides) for r in rounds)
    assert all(a == b[::-1] for a, b in itertools.pairwise(rounds))


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [(1.0, ("<=", 1.0), True), (1.1, ("<=", 1.0), False), (9.9, (">=", 10), False), (1.0, None, None)],
)
def test_targets(value, target, met):
    assert Figure(value, "x", target=target).met is met


def test_a_ratio_is_of_medians_and_the_whole_is_json():
    sides = {"slow": Sample((3.0, 1.0, 100.0)), "fast": Sample((2.0, 1.5, 1.0))}
    figure = ratio(sides, "slow", "fast", (">=", 2.0))
    assert figure.value == 2.0
    found = finish("x", "about", Setting(3, None), Measured({"f": figure}, "1"))
    assert found == json.loads(json.dumps(found))
    assert found["met"] is True
    assert found["figures"]["f"]["sides"]["slow"] == {
        "median": 3.0,
        "min": 1.0,
        "max": 100.0,
        "n": 3,
        "values": [3.0, 1.0, 100.0],
    }
    assert found["machine"]["cpus"] >= 1
    assert found["versions"]["torch"]


def test_rates_are_log_spaced():
    found = rates(16)
    steps = [math.log(b / a) for a, b in itertools.pairwise(found)]
    assert len(found) == 16
    assert max(steps) == pytest.approx(min(steps), rel=0.05)


@pytest.mark.parametrize(
    ("rate", "losses", "right"),
    [("a", [], True), ("b", [2.01, 2.0], True), ("b", [2.5, 2.6], False), ("b", [2.0, None], False)],
)
def test_a_rate_agrees_when_it_is_inside_the_interval(rate, losses, right):
    grid = {"rate": "a", "losses": [2.0, 2.02, 1.98]}
    assert agrees({"rate": rate, "losses": losses}, grid) is right


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_benches_run(name, tmp_path):
    check(bench(name, repeats=2, out=tmp_path, quick=True), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("FABRIC_SLOW"), reason="starts up to six Rays; FABRIC_SLOW=1 runs it")
@pytest.mark.parametrize("name", ["rerun", *WITH_RAY])
def test_benches_of_whole_sweeps_run(name, tmp_path):
    check(bench(name, repeats=1, out=tmp_path, quick=True), tmp_path)


def check(found, out):
    assert found == json.loads(json.dumps(found))
    for figure in found["figures"].values():
        assert math.isfinite(figure["value"])
        for side in figure["sides"].values():
            assert side["min"] <= side["median"] <= side["max"]
            assert len(side["values"]) == side["n"] >= found["repeats"]
    assert not list(out.glob("bench-*")), "records are removed afterwards"
