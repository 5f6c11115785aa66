"""The decision rule: what it adopts, and how often it is wrong."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.analysis import decide as rule
from fabric.analysis.decide import ArmResult, decide
from fabric.analysis.stats import minimal_detectable_difference


def arm(name, losses, state=2.0, flops=1.0, diverged=0):
    values = losses if isinstance(losses, dict) else dict(enumerate(losses))
    return ArmResult(name, values, state, flops, diverged)


BASE = arm("base", [3.00, 3.02, 2.98, 3.01, 2.99])
BETTER = arm("good", [2.90, 2.915, 2.885, 2.91, 2.89])
WORSE = arm("bad", [3.10, 3.125, 3.08, 3.11, 3.09])
SAME = arm("same", [3.005, 3.015, 2.985, 3.005, 2.992])


def study(y, *, margin=None, state=(2.0,)):
    """decide() on an array of losses [arms, seeds]; arm 0 is the baseline."""
    states = [*state, *[state[-1]] * len(y)]
    arms = [arm(str(i), v, state=states[i]) for i, v in enumerate(y)]
    return decide(arms, "0", margin=margin)


def draws(n_draws, n_arms, n_seeds, seed, stds=None, shifts=None):
    """Losses [draw, arm, seed] with a seed effect shared by the arms, noise 1 (or `stds`) and means `shifts`."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n_draws, n_arms, n_seeds)) * np.array(stds or [1.0] * n_arms)[:, None]
    means = np.array(shifts or [0.0] * n_arms)[:, None]
    return noise + means + rng.standard_normal((n_draws, 1, n_seeds))


def test_the_better_arm_is_adopted():
    found = decide([BASE, BETTER, WORSE, SAME], "base")
    assert found.winner == "good"
    assert dict(found.verdict) == {
        "base": "baseline",
        "good": "better",
        "bad": "worse",
        "same": "within noise",
    }
    assert found.ranking == ("good", "base", "same", "bad")
    c = found.comparisons["good"]
    assert c.low < c.diff < c.high < 0
    assert c.p_holm < 0.05


def test_of_two_better_arms_the_lower_mean_wins():
    best = arm("best", [v - 0.05 for v in BETTER.losses.values()])
    assert decide([BASE, BETTER, best], "base").winner == "best"


def test_noise_keeps_the_baseline():
    found = decide([BASE, SAME], "base")
    assert found.winner == "base"
    assert "noise" in found.reason
    assert found.detectable > 0


def test_what_is_detectable_is_detectable_beside_all_other_arms():
    found = decide([BASE, BETTER, WORSE, SAME], "base")
    expected = [
        minimal_detectable_difference(c.std, c.n, 0.05 / 3, df=c.df) for c in found.comparisons.values()
    ]
    assert found.detectable == max(expected)


def test_a_cheaper_arm_is_adopted_only_within_the_margin():
    cheap = arm("cheap", SAME.losses, state=1.0)
    assert decide([BASE, cheap], "base").winner == "base"
    assert decide([BASE, cheap], "base", margin=0.001).winner == "base"
    found = decide([BASE, cheap], "base", margin=0.05)
    assert (found.winner, found.verdict["cheap"]) == ("cheap", "adopted for cost")
    assert found.comparisons["cheap"].high < 0.05
    assert decide([BASE, SAME], "base", margin=0.05).winner == "base"  # not cheaper
    surely_worse = arm("cheap", [v + 0.01 for v in BASE.losses.values()], state=1.0)
    assert decide([BASE, surely_worse], "base").verdict["cheap"] == "worse"
    found = decide([BASE, surely_worse], "base", margin=0.05)
    assert (found.winner, found.verdict["cheap"]) == ("cheap", "adopted for cost")


def test_cheaper_means_state_first_then_flops():
    fewer_flops = arm("flops", SAME.losses, state=2.0, flops=0.5)
    less_state = arm("state", SAME.losses, state=1.9, flops=9.0)
    assert decide([BASE, fewer_flops], "base", margin=0.05).winner == "flops"
    assert decide([BASE, fewer_flops, less_state], "base", margin=0.05).winner == "state"
    unknown = arm("unknown", SAME.losses, state=math.inf, flops=math.inf)
    assert decide([BASE, unknown], "base", margin=0.05).winner == "base"


def test_diverged_arms_are_worst():
    for bad in (arm("nan", [1.0, 1.0, 1.0, 1.0, math.nan]), arm("gone", {}, diverged=5)):
        found = decide([BASE, bad, WORSE], "base", keep=3)
        assert found.verdict[bad.name] == "diverged"
        assert found.ranking[-1] == bad.name
        assert bad.name not in found.kept
        assert found.winner == "base"


def test_a_diverged_baseline_gives_way_to_the_lowest_mean():
    gone = arm("base", [3.0, 3.0, math.inf])
    found = decide([gone, WORSE, BETTER], "base")
    assert (found.winner, found.verdict["base"]) == ("good", "diverged")
    assert found.verdict["good"] == found.verdict["bad"] == "not compared, the baseline diverged"
    assert found.comparisons == {}, "no difference is claimed to runs that did not come to their end"
    alone = decide([gone, arm("x", {}, diverged=1)], "base")
    assert (alone.winner, alone.kept) == ("base", ("base",))


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_seeds_are_undecided(n):
    first = [arm(a.name, list(a.losses.values())[:n]) for a in (BASE, BETTER, WORSE)]
    found = decide(first, "base", margin=0.5)
    assert found.winner == "good"
    assert found.verdict["good"] == found.verdict["bad"] == "undecided, n too small"
    assert "n too small" in found.reason
    assert found.comparisons["good"].low is None


def test_an_arm_with_too_few_seeds_cannot_win_beside_others():
    short = arm("short", [1.0, 1.0])
    found = decide([BASE, short, BETTER], "base")
    assert (found.winner, found.verdict["short"]) == ("good", "undecided, n too small")
    assert decide([BASE, short, SAME], "base").winner == "base"


def test_ties_keep_the_baseline():
    copy = arm("copy", BASE.losses)
    found = decide([BASE, copy], "base")
    assert (found.winner, found.verdict["copy"]) == ("base", "within noise")
    two = [arm(a, [3.0, 3.1]) for a in ("base", "x")]
    assert decide(two, "base").winner == "base"  # undecided and equal
    cheap = arm("copy", BASE.losses, state=1.0)
    assert decide([BASE, cheap], "base", margin=0.01).winner == "copy"  # equal and cheaper


def test_keep_carries_the_next_best():
    found = decide([BASE, BETTER, WORSE, SAME], "base", keep=2)
    assert found.kept == ("good", "base")


@pytest.mark.parametrize(
    ("arms", "options", "message"),
    [
        ([BASE, BASE], {}, "named twice"),
        ([BETTER], {}, "'base' is not among"),
        ([BASE], {"margin": 0.0}, "margin=0"),
        ([BASE], {"alpha": 1.0}, "alpha=1"),
        ([BASE], {"keep": 2}, "keep=2; allowed: 1 to 1"),
        ([BASE, arm("x", {})], {}, "neither losses nor diverged"),
    ],
)
def test_mistakes_are_named(arms, options, message):
    with pytest.raises(ValueError, match=message):
        decide(arms, "base", **options)


def test_a_decision_is_plain_json():
    bad = arm("bad", [1.0, math.nan, 1.0])
    body = json.dumps(decide([BASE, BETTER, bad], "base").to_json(), allow_nan=False)
    assert json.loads(body)["inputs"]["bad"] == {
        "losses": {"0": 1.0, "2": 1.0},
        "diverged": 1,
        "state_bytes": 2.0,
        "flops": 1.0,
    }


@given(
    st.lists(st.lists(st.floats(2, 4), min_size=3, max_size=3), min_size=2, max_size=4),
    st.permutations(range(3)),
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_the_order_of_seeds_and_a_shift_of_all_change_no_verdict(y, order):
    arms = [arm(str(i), v) for i, v in enumerate(y)]
    shuffled = [arm(str(i), {s: v[s] for s in order}) for i, v in enumerate(y)]
    assert decide(arms, "0") == decide(shuffled, "0")


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("n_arms", [3, 4])
def test_under_the_null_nothing_is_adopted_more_than_alpha(n_arms, n_seeds):
    """Whole rule: spread test, pooling, Holm. (Two-sided at 0.05, so that false adoptions come to about 0.03.)"""
    adopted = [study(y).winner != "0" for y in draws(800, n_arms, n_seeds, seed=n_arms * 10 + n_seeds)]
    assert np.mean(adopted) <= 0.05


@pytest.mark.parametrize("stds", [(1, 1, 1, 3), (3, 1, 1, 1), (1, 1, 1, 10)])
def test_under_the_null_with_unequal_spread(stds):
    adopted = [study(y).winner != "0" for y in draws(800, 4, 3, seed=5, stds=list(stds))]
    assert np.mean(adopted) <= 0.06


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_adoption_for_cost_is_safe(n_seeds):
    """Cheaper arms truly 3 seed deviations worse, at the margin that just forbids them and at a smaller one."""
    y = draws(700, 4, n_seeds, seed=7, shifts=[0, 3, 3, 3])
    at_margin = [study(v, margin=3.0, state=(2.0, 1.0)).winner != "0" for v in y]
    below = [study(v, margin=1.0, state=(2.0, 1.0)).winner != "0" for v in y]
    assert np.mean(at_margin) <= 0.05
    assert np.mean(below) <= 0.005


def test_adoption_for_cost_finds_what_is_as_good():
    y = draws(400, 3, 5, seed=8)
    adopted = [study(v, margin=4.0, state=(2.0, 1.0)).winner != "0" for v in y]
    assert np.mean(adopted) > 0.8


def test_pooling_finds_what_plain_paired_tests_miss(monkeypatch):
    y = draws(500, 4, 5, seed=9, shifts=[0, -2, 0, 0])
    pooled = np.mean([study(v).winner == "1" for v in y])
    monkeypatch.setattr(rule, "pooled_residual", lambda losses: None)
    plain = np.mean([study(v).winner == "1" for v in y])
    assert pooled > plain + 0.1
