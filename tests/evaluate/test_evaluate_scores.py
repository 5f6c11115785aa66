"""Intervals, chance and paired differences against known values, and by what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from fabric.evaluate import scores
from fabric.evaluate.scores import bootstrapped, mcnemar, mean_of_shares, paired, share


def test_a_share_has_wilsons_interval():
    found = share([True] * 8 + [False] * 2)
    assert (found.value, found.n, found.chance) == (0.8, 10, None)
    assert (found.low, found.high) == pytest.approx((0.49016, 0.94331), abs=1e-5)
    assert not found.is_chance
    assert share([True]).low is None


def test_chance_is_what_a_guesser_gets_at_this_n():
    even = share([True] * 60 + [False] * 40, [0.5] * 100)
    assert (even.chance, even.chance_low, even.chance_high) == (0.5, 0.40, 0.60)
    assert even.is_chance
    assert not share([True] * 61 + [False] * 39, [0.5] * 100).is_chance
    mixed = share([True, False] * 50, [0.5, 0.25] * 50)
    assert mixed.chance == 0.375
    with pytest.raises(ValueError, match="2 items have 1 chances"):
        share([True, False], [0.5])
    with pytest.raises(ValueError, match="a share of no items"):
        share([])


def test_every_group_has_the_same_weight():
    found = mean_of_shares([[True], [False] * 3], 0.5)
    assert (found.value, found.n) == (0.5, 4)
    even = mean_of_shares([[True, False] * 50] * 4, 0.5)
    half = 1.959964 * (0.25 / 400) ** 0.5
    assert (even.low, even.high) == pytest.approx((0.5 - half, 0.5 + half))
    assert (even.chance_low, even.chance_high) == pytest.approx((0.5 - half, 0.5 + half))
    with pytest.raises(ValueError, match="items in each"):
        mean_of_shares([[True], []], 0.5)


def test_mcnemar_looks_at_what_one_alone_gets():
    """Ten that B alone gets and two that A alone gets: p = 2 P(X <= 2), X ~ Binomial(12, 1/2)."""
    a = [True] * 50 + [False] * 10 + [True] * 2 + [False] * 38
    b = [True] * 50 + [True] * 10 + [False] * 2 + [False] * 38
    found = mcnemar(a, b)
    assert found.p == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert found.value == pytest.approx(0.08)
    assert found.low < 0.08 < found.high
    assert found.low > 0
    assert mcnemar(a, a).p == 1.0
    turned = mcnemar(b, a)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    with pytest.raises(ValueError, match="the same items of both"):
        mcnemar(a, b[1:])


def coverage(interval, truth, n_studies=400):
    rng = np.random.default_rng(0)
    held = [low <= truth <= high for low, high in (interval(rng) for _ in range(n_studies))]
    return np.mean(held)


def correlated(rng, n=80):
    """Two targets that are right in 0.6 and 0.7 of all, mostly on the same items."""
    ease = rng.random(n)
    noise = rng.normal(0, 0.15, (2, n))
    a, b = (ease + noise[0] < 0.6, ease + noise[1] < 0.7)
    return a.tolist(), b.tolist()


def test_intervals_hold_what_they_promise(monkeypatch):
    """95 of 100, give or take what 400 studies tell: two standard errors are 2.2 points."""
    monkeypatch.setattr(scores, "DRAWS", 200)
    rng = np.random.default_rng(1)
    many = [correlated(rng, 100_000) for _ in range(4)]
    truth = float(np.mean([np.mean(b) - np.mean(a) for a, b in many]))

    def newcombe(rng):
        found = mcnemar(*correlated(rng))
        return found.low, found.high

    def normal_mean(rng):
        found = bootstrapped(rng.normal(3.0, 1.0, 60).tolist(), np.mean)
        return found.low, found.high

    assert 0.92 <= coverage(newcombe, truth) <= 0.99
    assert 0.90 <= coverage(normal_mean, 3.0, 200) <= 0.99


def test_a_paired_difference_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(2)
    a = rng.normal(0, 1, 200)
    b = a + 0.05 + rng.normal(0, 0.1, 200)
    found = paired(a.tolist(), b.tolist(), np.mean)
    assert found.value == pytest.approx(float(np.mean(b - a)))
    assert 0 < found.low < found.high
    assert found.p < 0.01
    same = paired(a.tolist(), a.tolist(), np.mean)
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    again = paired(a.tolist(), b.tolist(), np.mean)
    assert again == found, "nothing is random"
