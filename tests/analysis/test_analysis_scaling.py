"""Scaling laws: exact data are recovered, intervals hold the truth, too few sizes are refused."""

import numpy as np
import pytest

from fabric.analysis.scaling import fit_power_law, holdout

SIZES = [10_000, 20_000, 45_000, 90_000, 180_000, 400_000, 800_000]


def law(n, E=1.7, A=60.0, alpha=0.34):
    return E + A * np.asarray(n, dtype=float) ** -alpha


@pytest.mark.parametrize(("E", "A", "alpha"), [(1.7, 60.0, 0.34), (1.0, 400.0, 0.6), (2.5, 20.0, 0.2)])
def test_exact_data_are_recovered(E, A, alpha):
    fit = fit_power_law(SIZES, list(law(SIZES, E, A, alpha)))
    assert (fit.E, fit.A, fit.alpha) == pytest.approx((E, A, alpha), rel=1e-3)
    assert fit.noise < 1e-6
    assert fit.predict(10**7) == pytest.approx(law(10**7, E, A, alpha), rel=1e-4)


def test_one_outlier_does_not_carry_the_curve():
    losses = law(SIZES)
    losses[2] *= 1.15
    fit = fit_power_law(SIZES, list(losses))
    assert fit.predict(SIZES[-1]) == pytest.approx(law(SIZES[-1]), rel=0.02)


def test_fewer_than_four_sizes_are_refused():
    with pytest.raises(ValueError, match=r"3 sizes.*at least 4"):
        fit_power_law(SIZES[:3], [3.0, 2.9, 2.8])
    with pytest.raises(ValueError, match="3 sizes"):  # the same size twice is one size
        fit_power_law([*SIZES[:3], SIZES[0]], [3.0, 2.9, 2.8, 3.1])
    with pytest.raises(ValueError, match=r"4 sizes: predicting.*needs 5"):
        holdout({n: [float(law(n))] for n in SIZES[:4]})


@pytest.mark.parametrize(
    ("sizes", "losses", "message"),
    [
        (SIZES[:4], [3.0, 2.0], "4 sizes but 2 losses"),
        (SIZES[:4], [3.0, 2.9, float("nan"), 2.7], "positive and finite"),
        (SIZES[:4], [3.0, 2.9, [], 2.7], "empty sizes"),
        ([0, 1, 2, 3], [3.0, 2.9, 2.8, 2.7], "positive and finite"),
    ],
)
def test_mistakes_are_named(sizes, losses, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(sizes, losses)


def test_the_largest_size_is_held_out():
    losses = {n: [float(law(n))] * 2 for n in SIZES}
    losses[SIZES[-1]] = [9.0, 9.2]  # would spoil the fit if it were seen
    found = holdout(losses)
    assert found.n_params == SIZES[-1]
    assert found.measured == pytest.approx(9.1)
    assert found.predicted == pytest.approx(law(SIZES[-1]), rel=1e-3)
    assert not found.inside
    assert found.fit.sizes == tuple(SIZES[:-1])


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_intervals_of_the_held_out_size_hold_it(n_seeds):
    """95 % intervals over simulated studies with 1 % noise a run."""
    rng = np.random.default_rng(n_seeds)
    hits, widths = [], []
    for _ in range(40):
        runs = law(SIZES)[:, None] * (1 + 0.01 * rng.standard_normal((len(SIZES), n_seeds)))
        found = holdout(dict(zip(SIZES, runs.tolist())))
        hits.append(found.inside)
        widths.append((found.high - found.low) / found.measured)
    assert np.mean(hits) >= 0.875
    assert np.median(widths) < 0.12  # an interval that is always right because it is everything is no use


def test_the_curves_interval_holds_its_constants():
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(30):
        runs = law(SIZES)[:, None] * (1 + 0.005 * rng.standard_normal((len(SIZES), 3)))
        fit = fit_power_law(SIZES, runs.tolist())
        low, high = fit.parameter_interval("alpha")
        inside.append(low <= 0.34 <= high)
    assert np.mean(inside) >= 0.86


def test_a_law_without_a_floor_is_within_the_intervals():
    """At E = 0 alpha is known to a fraction of a percent: a coarse grid of alphas would miss it nearly always."""
    rng = np.random.default_rng(4)
    inside = []
    for _ in range(6):
        runs = law(SIZES, 0.0, 4.74, 0.1)[:, None] * (1 + 0.003 * rng.standard_normal((len(SIZES), 3)))
        fit = fit_power_law(SIZES, runs.tolist())
        intervals = fit.parameter_interval("E"), fit.parameter_interval("alpha")
        inside.append([low <= true <= high for (low, high), true in zip(intervals, (0.0, 0.1))])
    assert (np.sum(inside, axis=0) >= 5).all()


def test_the_same_data_give_the_same_interval():
    losses = (law(SIZES) * (1 + 0.01 * np.random.default_rng(0).standard_normal(len(SIZES)))).tolist()
    assert fit_power_law(SIZES, losses) == fit_power_law(SIZES, losses)
