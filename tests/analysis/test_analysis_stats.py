"""Intervals, Holm, pooling and power against scipy and against simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from fabric.analysis import stats

LOSSES = {
    "a": {0: 3.10, 1: 3.14, 2: 3.05, 3: 3.12},
    "b": {0: 3.02, 1: 3.09, 2: 2.99, 3: 3.01},
    "c": {0: 3.20, 1: 3.21, 2: 3.18, 3: 3.24},
}


def test_summary_is_the_t_interval():
    values = list(LOSSES["a"].values())
    found = stats.summary(values)
    low, high = scipy_stats.t.interval(0.95, 3, np.mean(values), scipy_stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high), rel=1e-12)
    assert stats.summary([1.5]) == stats.Summary(1.5, None, None, None, 1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_summary_refuses_what_cannot_be_averaged(values):
    with pytest.raises(ValueError, match="summary"):
        stats.summary(values)


def test_paired_is_scipys_paired_test():
    found = stats.paired(LOSSES["a"], LOSSES["b"])
    theirs = scipy_stats.ttest_rel(list(LOSSES["b"].values()), list(LOSSES["a"].values()))
    interval = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert (found.n, found.df) == (4, 3)


def test_paired_uses_common_seeds_only():
    found = stats.paired({0: 1.0, 1: 2.0, 9: 50.0}, {0: 1.5, 1: 2.5, 8: -50.0})
    assert (found.n, found.diff) == (2, 0.5)
    with pytest.raises(ValueError, match="no common seeds"):
        stats.paired({0: 1.0}, {1: 1.0})
    with pytest.raises(ValueError, match="together"):
        stats.paired({0: 1.0}, {0: 1.0}, pooled_std=0.1)


def test_runs_that_differ_by_a_constant():
    """Without any noise the interval is a point: identical arms are no difference, shifted ones are one."""
    same = stats.paired(LOSSES["a"], LOSSES["a"])
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)
    shifted = stats.paired({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5})
    assert (shifted.p, shifted.low, shifted.high) == (0.0, 0.5, 0.5)


def test_pooled_residual_is_the_two_way_residual():
    pooled = stats.pooled_residual(LOSSES)
    y = np.array([list(v.values()) for v in LOSSES.values()])
    residual = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    assert pooled.df == 6
    assert pooled.std == pytest.approx(math.sqrt((residual**2).sum() / 6), rel=1e-12)


def test_pooled_residual_needs_three_arms_and_seeds():
    assert not stats.pooled_residual({k: LOSSES[k] for k in "ab"}).allowed
    two_seeds = {k: {s: v[s] for s in (0, 1)} for k, v in LOSSES.items()}
    assert "2 common seeds" in stats.pooled_residual(two_seeds).reason


def test_identical_arms_are_pooled_once():
    """A window longer than the text repeats the baseline bit for bit; counted twice it would shrink the noise."""
    with_copy = stats.pooled_residual({**LOSSES, "copy": dict(LOSSES["a"])})
    assert with_copy.arms == ("a", "b", "c")
    assert (with_copy.std, with_copy.df) == (
        stats.pooled_residual(LOSSES).std,
        stats.pooled_residual(LOSSES).df,
    )
    only_copies = stats.pooled_residual({k: dict(LOSSES["a"]) for k in "abc"})
    assert not only_copies.allowed
    assert "1 different arms" in only_copies.reason


def test_equal_spread_is_pooled_and_unequal_is_not():
    rng = np.random.default_rng(0)
    levels = {"equal": [1, 1, 1, 1], "unequal": [1, 1, 1, 12]}
    share = {}
    for name, stds in levels.items():
        noise = rng.standard_normal((300, 4, 5)) * np.array(stds)[None, :, None]
        share[name] = np.mean(
            [
                stats.pooled_residual({str(a): dict(enumerate(v)) for a, v in enumerate(y)}).allowed
                for y in noise
            ]
        )
    assert share["equal"] == pytest.approx(0.8, abs=0.07)
    assert share["unequal"] < 0.1


def test_many_arms_do_not_need_much_memory():
    rng = np.random.default_rng(1)
    losses = {str(a): dict(enumerate(rng.standard_normal(3))) for a in range(300)}
    assert stats.pooled_residual(losses).df == 299 * 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(deadline=None, derandomize=True)
def test_holm_against_its_definition(p_values):
    adjusted = stats.holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    m = len(p_values)
    for rank, i in enumerate(order):
        expected = max(min(1.0, (m - r) * p_values[j]) for r, j in enumerate(order[: rank + 1]))
        assert adjusted[i] == expected


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=6), st.sampled_from([0.01, 0.05, 0.1]))
@settings(deadline=None, derandomize=True)
def test_intervals_at_holms_levels_exclude_zero_when_holm_rejects(p_values, alpha):
    """An interval at level L excludes zero exactly when p <= L."""
    levels = stats.holm_levels(p_values, alpha)
    rejected = [p <= level for p, level in zip(p_values, levels)]
    m, still = len(p_values), True
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        still = still and p_values[i] <= alpha / (m - rank)
        assert rejected[i] == still


@pytest.mark.parametrize(("df", "n"), [(2, 3), (4, 5), (8, 5), (27, 10)])
@pytest.mark.parametrize("difference", [0.0, 0.7, 2.0])
def test_power_is_the_noncentral_ts(df, n, difference):
    critical = scipy_stats.t.ppf(0.975, df)
    shift = difference * math.sqrt(n)
    expected = scipy_stats.nct.sf(critical, df, shift) + scipy_stats.nct.cdf(-critical, df, shift)
    assert stats._power(difference, 1.0, n, 0.05, df) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 40])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3, 0.05 / 30])
def test_detectable_difference_has_the_power_it_names(n, alpha):
    """Also where scipy's noncentral t is NaN: few seeds, strict levels."""
    d = stats.minimal_detectable_difference(0.3, n, alpha)
    assert d is not None
    assert stats._power(d, 0.3, n, alpha, n - 1) == pytest.approx(0.8, abs=1e-6)
    assert stats.minimal_detectable_difference(0.6, n, alpha) == pytest.approx(2 * d)


def test_detectable_difference_of_one_seed_is_unknown():
    assert stats.minimal_detectable_difference(0.3, 1) is None
    with pytest.raises(ValueError, match="std=0"):
        stats.minimal_detectable_difference(0.0, 5)


def test_seeds_needed_is_the_first_that_is_enough():
    n = stats.seeds_needed(1.0, 1.0)
    assert n == 10  # the textbook's paired t-test: effect size 1, alpha 0.05, power 0.8
    assert stats._power(1.0, 1.0, n, 0.05, n - 1) >= 0.8 > stats._power(1.0, 1.0, n - 1, 0.05, n - 2)
    assert stats.seeds_needed(1.0, 1e-6, most=100) is None
    with pytest.raises(ValueError, match="difference"):
        stats.seeds_needed(1.0, 0.0)


@pytest.mark.parametrize("n", [3, 5])
def test_intervals_cover_the_truth(n):
    """95 % intervals of means and of paired differences hold the truth in 95 % of draws."""
    rng = np.random.default_rng(n)
    y = 3 + rng.standard_normal((4000, 2, n)) * 0.02 + rng.standard_normal((4000, 1, n)) * 0.05
    y[:, 1] += 0.01
    means = [stats.summary(a) for a in y[:, 0]]
    pairs = [stats.paired(dict(enumerate(a)), dict(enumerate(b))) for a, b in y]
    assert np.mean([m.low <= 3 <= m.high for m in means]) == pytest.approx(0.95, abs=0.015)
    assert np.mean([p.low <= 0.01 <= p.high for p in pairs]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("n", [3, 5])
def test_intervals_cover_the_truth_when_pooling_is_tested_first(n):
    rng = np.random.default_rng(10 + n)
    y = rng.standard_normal((2500, 4, n)) * 0.02 + rng.standard_normal((2500, 1, n)) * 0.05
    hits = []
    for draw in y:
        losses = {str(a): dict(enumerate(v)) for a, v in enumerate(draw)}
        spread = stats.pooled_residual(losses)
        std, df = (spread.std, spread.df) if spread.allowed else (None, None)
        hits += [(p := stats.paired(losses["0"], losses[a], std, df)).low <= 0 <= p.high for a in "123"]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)
