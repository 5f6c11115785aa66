"""Which rate an arm takes, and its sensitivity to it."""

import json
import math

import pytest

from fabric.analysis.rates import human_rate, lr_sensitivity, pick_rate


def test_the_lowest_mean_over_tuning_seeds_wins():
    found = pick_rate([(4e-3, [3.0, 3.2]), (1e-3, [3.5, 3.4]), (8e-3, [3.1, 3.3])])
    assert (found.lr, found.mean, found.edge, found.warning) == (4e-3, pytest.approx(3.1), False, None)


def test_of_equal_rates_the_smaller_wins():
    assert pick_rate([(2e-3, [3.0]), (1e-3, [3.0]), (4e-3, [3.0])]).lr == 1e-3


@pytest.mark.parametrize(("losses", "side"), [([2.9, 3.0, 3.1], "below"), ([3.1, 3.0, 2.9], "above")])
def test_a_best_rate_at_the_edge_is_warned_about(losses, side):
    found = pick_rate([(lr, [v]) for lr, v in zip((1e-3, 2e-3, 4e-3), losses)])
    assert found.edge
    assert f"extend the grid {side}" in found.warning


def test_one_rate_is_no_grid():
    assert pick_rate([(1e-3, [3.0])]).warning is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_diverged_run_makes_its_rate_worst(bad):
    found = pick_rate([(1e-3, [3.5, 3.5]), (2e-3, [3.0, bad]), (4e-3, [3.6, 3.6])])
    assert found.lr == 1e-3
    json.dumps(found.to_json(), allow_nan=False)


def test_a_stopped_rate_is_no_candidate_but_part_of_the_grid():
    found = pick_rate([(1e-3, []), (2e-3, [3.0]), (4e-3, [3.1])])
    assert (found.lr, found.edge) == (2e-3, False)


def test_all_diverged():
    found = pick_rate([(1e-3, [None]), (2e-3, [math.nan])])
    assert (found.lr, found.mean) == (1e-3, None)
    assert "every learning rate diverged" in found.warning


@pytest.mark.parametrize("points", [[], [(1e-3, [1.0]), (1e-3, [2.0])], [(1e-3, []), (2e-3, [])]])
def test_mistakes(points):
    with pytest.raises(ValueError, match="rate"):
        pick_rate(points)


def test_sensitivity_of_a_constant_curve_is_zero():
    assert lr_sensitivity(dict.fromkeys([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], 3.2), 6.2) == 0.0


def test_sensitivity_caps_diverging_points_at_the_initial_loss():
    losses = {1e-4: 3.4, 3e-4: 3.2, 1e-3: 3.0, 3e-3: 3.1, 1e-2: 1e9}
    expected = (0.4 + 0.2 + 0.0 + 0.1 + 3.2) / 5
    assert lr_sensitivity(losses, 6.2) == pytest.approx(expected)
    assert lr_sensitivity({**losses, 1e-2: math.nan}, 6.2) == pytest.approx(expected)
    assert lr_sensitivity({**losses, 1e-2: None}, 6.2) == pytest.approx(expected)


def test_sensitivity_needs_five_rates_and_one_that_trained():
    four = dict.fromkeys([1e-4, 3e-4, 1e-3, 3e-3], 3.0)
    assert lr_sensitivity(four, 6.2) is None
    assert lr_sensitivity(dict.fromkeys([1, 2, 3, 4, 5], None), 6.2) is None
    with pytest.raises(ValueError, match="initial_loss"):
        lr_sensitivity({**four, 1e-2: 3.0}, math.nan)


@pytest.mark.parametrize(
    ("lr", "text"), [(3e-4, "3e-4"), (2.5e-4, "2.5e-4"), (0.02, "0.02"), (0.01, "0.01"), (4e-3, "4e-3")]
)
def test_human_rate(lr, text):
    assert human_rate(lr) == text
