"""Paired comparisons of a few seeds: t-intervals, pooled residual variance, Holm's correction, power.

Seeds are paired: the same seed fixes the order of the data in every arm, so two arms are compared by the differences
of their losses seed by seed. With `y[arm, seed] = mean[arm] + effect[seed] + noise`, the variance of such a
difference can be estimated from the two arms alone (n - 1 degrees of freedom) or, when all pairs of arms differ with
the same spread, from all arms together ((arms - 1)(n - 1) degrees of freedom), which sees smaller differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr, stdtr, stdtrit

SPREAD_ALPHA = 0.2  # lenient: missing an unequal spread costs more than seeing one that is not there
NULL_DRAWS = 4000
POWER_NODES = 256


@dataclass(frozen=True)
class Summary:
    """Mean and its 95 % t-interval; `low`, `high` and `std` are None for a single value."""

    mean: float
    low: float | None
    high: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """Mean difference arm - base over common seeds, its interval and two-sided p (None where n is too small)."""

    diff: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    std: float | None  # standard deviation of one seed's difference that the interval was built with
    df: int | None


@dataclass(frozen=True)
class Pooled:
    """Residual standard deviation of one run after removing arm and seed effects, and whether pooling it is allowed.

    `p` belongs to the test of equal spread named in `test`; `reason` says why pooling is or is not allowed.
    """

    std: float | None
    df: int | None
    allowed: bool
    p: float | None
    epsilon: float | None
    arms: tuple[str, ...]
    n: int
    reason: str
    test: str = (
        "sphericity (John 1971): Greenhouse-Geisser epsilon against its simulated normal null distribution"
    )


def t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t."""
    return float(stdtrit(df, probability))


def _finite(values: Sequence[float], what: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError(f"{what}: no values; give at least one")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: {values} holds NaN or infinity; diverged runs are counted, never averaged")
    return array


def summary(values: Sequence[float], alpha: float = 0.05) -> Summary:
    """Mean, standard deviation and the 1 - alpha t-interval of the mean.

    Raises ValueError for no values or for NaN among them.
    """
    array = _finite(values, "summary")
    n, mean = array.size, float(array.mean())
    if n < 2:
        return Summary(mean, None, None, None, n)
    std = float(array.std(ddof=1))
    half = t_quantile(1 - alpha / 2, n - 1) * std / math.sqrt(n)
    return Summary(mean, mean - half, mean + half, std, n)


def paired(
    base: Mapping[int, float],
    arm: Mapping[int, float],
    pooled_std: float | None = None,
    df: int | None = None,
    alpha: float = 0.05,
) -> Paired:
    """Difference arm - base on their common seeds, with its 1 - alpha interval and two-sided p.

    `pooled_std` is the residual standard deviation of *one run* (`pooled_residual`) with its `df`; the difference of
    two runs then spreads by sqrt(2) times that. Raises ValueError without a common seed.
    """
    if (pooled_std is None) != (df is None):
        raise ValueError("give pooled_std and df together, or neither")
    seeds = sorted(set(base) & set(arm))
    if not seeds:
        raise ValueError(f"no common seeds: base has {sorted(base)}, the arm {sorted(arm)}")
    d = _finite([arm[s] - base[s] for s in seeds], "paired")
    n, diff = d.size, float(d.mean())
    if pooled_std is not None and df is not None:
        std = math.sqrt(2) * pooled_std
    elif n >= 2:
        std, df = float(d.std(ddof=1)), n - 1
    else:
        return Paired(diff, None, None, None, n, None, None)
    error = std / math.sqrt(n)
    half = t_quantile(1 - alpha / 2, df) * error
    if error == 0:  # identical runs: no noise to test against
        p = 1.0 if diff == 0 else 0.0
    else:
        p = 2 * float(stdtr(df, -abs(diff) / error))
    return Paired(diff, diff - half, diff + half, p, n, std, df)


@lru_cache(maxsize=64)
def _epsilon_null(n_arms: int, n_seeds: int) -> np.ndarray:
    """Sorted draws of epsilon when all differences spread equally; it depends on nothing but the two counts."""
    small, large = sorted((n_seeds - 1, n_arms - 1))  # the smaller Gram matrix has the same two traces
    draws = np.random.default_rng(20260101).standard_normal((NULL_DRAWS, small, large))
    cov = draws @ np.swapaxes(draws, 1, 2)
    trace = np.trace(cov, axis1=1, axis2=2)
    return np.sort(trace**2 / ((n_arms - 1) * np.square(cov).sum(axis=(1, 2))))


def _distinct(losses: Mapping[str, Mapping[int, float]], seeds: Sequence[int]) -> tuple[str, ...]:
    """The arms without those whose losses on the seeds are an earlier one's."""
    first: dict[Any, str] = {}
    for arm, values in losses.items():
        first.setdefault(tuple(values[s] for s in seeds) or arm, arm)
    return tuple(first.values())


def pooled_residual(losses: Mapping[str, Mapping[int, float]], spread_alpha: float = SPREAD_ALPHA) -> Pooled:
    """Residual standard deviation over all arms, on the seeds common to all, and whether it may be pooled.

    Pooling is valid exactly when all pairs of arms differ with the same variance (sphericity: Huynh & Feldt 1970).
    That is tested by Greenhouse & Geisser's epsilon, John's (1971) locally best invariant statistic, which works
    with more arms than seeds; its null distribution is simulated (exact for normal noise at any n, where Mauchly's
    chi-square is not). Pooling is refused when p < `spread_alpha`, for fewer than three arms (it would change
    nothing) and for fewer than three common seeds. An arm whose losses are another's (a window longer than the
    text) counts once: it holds no noise of its own and would make the others' look smaller.
    """
    seeds = sorted(set.intersection(*(set(v) for v in losses.values()))) if losses else []
    arms = _distinct(losses, seeds)
    n = len(seeds)
    if len(arms) < 3 or n < 3:
        few = f"{len(arms)} different arms (3 needed)" if len(arms) < 3 else f"{n} common seeds (3 needed)"
        return Pooled(None, None, False, None, None, arms, n, f"not pooled: {few}")
    y = np.array([_finite([losses[a][s] for s in seeds], f"arm {a}") for a in arms])
    residual = y - y.mean(0, keepdims=True) - y.mean(1, keepdims=True) + y.mean()
    df = (len(arms) - 1) * (n - 1)
    std = math.sqrt(float(np.square(residual).sum()) / df)
    cov = residual @ residual.T
    if std <= 1e-12 * max(1.0, float(np.abs(y).max())):
        return Pooled(
            std, df, False, None, None, arms, n, "not pooled: the runs do not differ but by a constant"
        )
    epsilon = float(np.trace(cov) ** 2 / ((len(arms) - 1) * np.square(cov).sum()))
    null = _epsilon_null(len(arms), n)
    p = float(1 + np.searchsorted(null, epsilon, side="right")) / (1 + null.size)
    allowed = p >= spread_alpha
    reason = f"{'pooled' if allowed else 'not pooled'}: equal spread has p = {p:.3f} (limit {spread_alpha:g})"
    return Pooled(std, df, allowed, p, epsilon, arms, n, reason)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given: compare each with alpha."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def holm_levels(p_values: Sequence[float], alpha: float = 0.05) -> list[float]:
    """The level at which each comparison's interval is drawn, so that it excludes zero exactly when Holm rejects.

    Holm's step r tests at alpha / (m - r + 1); from the first step that does not reject, all others keep its level.
    """
    m, levels, level, open_ = len(p_values), [alpha] * len(p_values), alpha, True
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        if open_:
            level = alpha / (m - rank)
            open_ = p_values[i] <= level
        levels[i] = level
    return levels


@cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(POWER_NODES)


@lru_cache(maxsize=64)
def _spreads(df: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of sqrt(chi2_df / df) and their weights: a Gauss-Legendre rule over the distribution."""
    nodes, weights = _rule()
    return np.sqrt(2 * gammaincinv(df / 2, (nodes + 1) / 2) / df), weights / 2


def _power(difference: float, std: float, n: int, alpha: float, df: int) -> float:
    """Chance that a two-sided paired t-test at `alpha` finds a true difference.

    The noncentral t's tails, integrated over the estimated spread: scipy's nctdtr is NaN at the few degrees of
    freedom that three seeds leave.
    """
    shift = difference / std * math.sqrt(n)
    spread, weight = _spreads(df)
    critical = t_quantile(1 - alpha / 2, df) * spread
    return float(weight @ (ndtr(shift - critical) + ndtr(-shift - critical)))


def _check_power(std: float, alpha: float, power: float) -> None:
    if not (std > 0 and 0 < alpha < power < 1):
        raise ValueError(
            f"std={std}, alpha={alpha}, power={power}; allowed: std > 0 and 0 < alpha < power < 1"
        )


def minimal_detectable_difference(
    std_of_difference: float, n: int, alpha: float = 0.05, power: float = 0.8, df: int | None = None
) -> float | None:
    """The smallest true difference that n paired seeds find with chance `power`; None for n < 2.

    `std_of_difference` is one seed's (sqrt(2) times a run's residual when pooled, with the pooled `df`). For m arms
    under Holm pass alpha / m, which is on the safe side.
    """
    _check_power(std_of_difference, alpha, power)
    if n < 2:
        return None
    return std_of_difference * _detectable_in_stds(n, alpha, power, n - 1 if df is None else df)


@lru_cache(maxsize=256)
def _detectable_in_stds(n: int, alpha: float, power: float, df: int) -> float:
    top = 2.0
    while _power(top, 1.0, n, alpha, df) < power:
        top *= 2
    return float(brentq(lambda d: _power(d, 1.0, n, alpha, df) - power, 0.0, top, xtol=1e-10))


def seeds_needed(
    std_of_difference: float, difference: float, alpha: float = 0.05, power: float = 0.8, most: int = 10_000
) -> int | None:
    """The fewest paired seeds that find `difference` with chance `power`; None when more than `most`."""
    _check_power(std_of_difference, alpha, power)
    if difference <= 0:
        raise ValueError(f"difference={difference}; give its size, above 0")

    def enough(n: int) -> bool:
        return _power(difference, std_of_difference, n, alpha, n - 1) >= power

    if not enough(most):
        return None
    low, high = 1, most  # `low` is never enough, `high` is
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
