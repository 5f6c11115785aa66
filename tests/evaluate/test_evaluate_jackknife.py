"""distinct-n: counted as by hand, with intervals that hold its expectation as often as they promise, and fast."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.evaluate.jackknife import distinct, jackknifed, jackknifed_difference, mean_where
from fabric.evaluate.samples import diversity, ngrams
from fabric.evaluate.scores import mcnemar
from fabric.evaluate.tasks import task


def by_hand(texts, n):
    grams = [g for text in texts for g in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    texts=st.lists(st.lists(st.sampled_from([0, 1, 2, 7, 50_256]), max_size=9), min_size=1, max_size=6),
    n=st.integers(1, 3),
)
def test_distinct_is_counted_as_by_hand(texts, n):
    value, without = distinct(texts, n)
    assert value == by_hand(texts, n)
    assert without.tolist() == [by_hand(texts[:i] + texts[i + 1 :], n) for i in range(len(texts))]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(values=st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=6))
def test_means_are_taken_of_what_is_there(values):
    def mean(some):
        there = [v for v in some if v is not None]
        return sum(there) / len(there) if there else 0.0

    value, without = mean_where(values)
    assert value == pytest.approx(mean(values))
    assert without == pytest.approx([mean(values[:i] + values[i + 1 :]) for i in range(len(values))])


def drawn(random, n_texts, length=40, kind="words"):
    """Texts of frequent and rare words; of a `topic` each, or some that repeat themselves."""
    p = 1 / np.arange(1, 401)
    p /= p.sum()
    texts = random.choice(400, (n_texts, length), p=p)
    if kind == "topics":
        texts = (texts + 40 * random.integers(0, 10, (n_texts, 1))) % 400
    if kind == "loops":
        loops = random.random(n_texts) < 0.3
        texts[loops] = np.tile(texts[loops, :4], length // 4)
    return texts.tolist()


@pytest.mark.parametrize("kind", ["words", "topics", "loops"])
@pytest.mark.parametrize("n", [1, 2])
def test_intervals_hold_the_expectation(kind, n):
    """The mean over many samples is what all intervals are about; 95 % of them hold it, or a little more."""
    random, found = np.random.default_rng(n), []
    for _ in range(500):
        value, without = distinct(drawn(random, 24, kind=kind), n)
        found.append(jackknifed(value, without, 0.0, 1.0))
    truth = np.mean([f.value for f in found])
    held = np.mean([f.low <= truth <= f.high for f in found])
    assert held >= 0.95 - 3 * (0.95 * 0.05 / 500) ** 0.5
    # Not by being wide at will: two thirds more than the spread of the values asks for, at most.
    spread = np.std([f.value for f in found])
    assert np.mean([f.high - f.low for f in found]) < 1.67 * 2 * 2.07 * spread


def test_the_difference_of_equals_is_seldom_found():
    random = np.random.default_rng(5)
    p = []
    for _ in range(400):
        sides = [distinct(drawn(random, 20, kind="loops"), 2) for _ in range(2)]
        found = jackknifed_difference(sides[1][0] - sides[0][0], sides[1][1] - sides[0][1])
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        p.append(found.p)
    assert np.mean(np.array(p) < 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert np.mean(np.array(p) < 0.5) > 0.25, "it is a p"


def test_a_real_difference_is_found():
    random, measures = np.random.default_rng(6), task("samples").measures
    varied, loops = ([{"ids": t} for t in drawn(random, 30, kind=k)] for k in ("words", "loops"))
    for name, sign in (("distinct_2", -1), ("repetition_4", 1)):
        found = measures[name].difference(varied, loops)
        assert sign * found.value > 0
        assert found.p < 0.01
        assert found.low < found.value < found.high
        with pytest.raises(ValueError, match="29 and 30 outcomes"):
            measures[name].difference(varied[1:], loops)


def test_scores_are_those_of_diversity_and_lie_in_their_intervals():
    texts = drawn(np.random.default_rng(7), 32, length=128)
    scores = {
        name: m.score([{"ids": t} for t in texts])
        for name, m in task("samples").measures.items()
        if name != "self_perplexity"
    }
    for name, value in diversity(texts).items():
        assert scores[name].value == pytest.approx(value)
    assert all(0 <= s.low <= s.value <= s.high <= 1 for s in scores.values())
    assert scores["distinct_1"].low < scores["distinct_1"].value < scores["distinct_1"].high


def test_a_hundred_texts_take_less_than_50_ms():
    random = np.random.default_rng(8)
    outcomes = [{"ids": t} for t in drawn(random, 100, length=200)]
    measure = task("samples").measures["distinct_3"]
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        measure.score(outcomes)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05


def test_few_texts_and_the_same_text():
    assert jackknifed(*distinct([[1, 2, 3]], 1)).low is None
    same = jackknifed(*distinct([[1, 2, 3, 1]] * 5, 1))
    assert same.value == 3 / 20
    assert same.low == same.high == pytest.approx(same.value), "drawn again, it would be the same text"
    with pytest.raises(ValueError, match="no items"):
        jackknifed(0.0, np.array([]))
    with pytest.raises(ValueError, match="over no items"):
        jackknifed_difference(0.0, np.array([]))
    one = [{"ids": [1, 2, 3]}]
    alone = task("samples").measures["distinct_1"].difference(one, one)
    assert (alone.value, alone.low, alone.high, alone.p) == (0.0, -1.0, 1.0, 1.0)
    equal = jackknifed_difference(0.0, np.zeros(4))
    assert equal.p == mcnemar([True], [True]).p == 1.0
