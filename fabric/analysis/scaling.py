"""How the loss falls with size: L(N) = E + A N^-alpha (Hoffmann et al. 2022, arXiv 2203.15556, equation 2 in N).

The curve is fitted to log L with a robust loss from several starts. Its uncertainty is a parametric bootstrap: the
noise of one run (from its spread over seeds and from the points' distance to the curve) is drawn anew, with the
uncertainty of that noise itself, and the curve fitted again; for a fixed alpha, E and A are a linear problem, so all
draws are fitted at once on a grid of alphas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from fabric.analysis.table import ArmRow
from fabric.job.units import human_count

MIN_SIZES = 4
DRAWS = 400
ROBUST_SCALE = 0.02  # in log L: points further off the curve than 2 % count less than squarely
ALPHAS = np.geomspace(0.02, 2.5, 120)
FINE = 81  # alphas tried between the neighbours of the grid's best
DRAW_SEED = 20260101


@dataclass(frozen=True)
class ScalingFit:
    """`L(N) = E + A N^-alpha`, E and A in nats; `noise` is one run's relative standard deviation, `df` its degrees
    of freedom; `draws` are the bootstrap's (E, A, alpha)."""

    E: float
    A: float
    alpha: float
    noise: float
    df: int
    sizes: tuple[float, ...]
    draws: tuple[tuple[float, float, float], ...] = ()

    def predict(self, n_params: float) -> float:
        """The loss (nats) of a model with that many parameters."""
        return float(self.E + self.A * n_params**-self.alpha)

    def interval(
        self, n_params: float, n_seeds: int | None = None, level: float = 0.95
    ) -> tuple[float, float]:
        """Where the curve is at that size; with `n_seeds`, where the mean loss of so many new runs will be."""
        E, A, alpha = np.array(self.draws).T
        losses = E + A * n_params**-alpha
        if n_seeds is not None:
            losses = losses * (
                1 + _noise_draws(self.noise, self.df, len(losses), 1)[:, 0] / math.sqrt(n_seeds)
            )
        low, high = np.quantile(losses, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def parameter_interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The interval of "E", "A" or "alpha"."""
        values = np.array(self.draws)[:, ("E", "A", "alpha").index(name)]
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


@dataclass(frozen=True)
class HeldOut:
    """The largest size, predicted from the others (nats): `low` and `high` for the mean of its `n_seeds` runs."""

    n_params: float
    predicted: float
    low: float
    high: float
    measured: float
    n_seeds: int
    fit: ScalingFit

    @property
    def inside(self) -> bool:
        """Whether the measured loss is in the interval."""
        return self.low <= self.measured <= self.high


@dataclass(frozen=True)
class Scaling:
    """A study's sizes: the losses (nats) by number of parameters, the curve through all of them, and the largest
    predicted from the others (None when there are too few sizes for that)."""

    losses: Mapping[float, tuple[float, ...]]
    fit: ScalingFit
    held_out: HeldOut | None

    def to_json(self) -> dict[str, Any]:
        """Plain data: constants with intervals, and the prediction beside what was measured."""
        body: dict[str, Any] = {"n_sizes": len(self.losses), "noise": self.fit.noise}
        for name in ("E", "A", "alpha"):
            body[name] = getattr(self.fit, name)
            body[f"{name}_low"], body[f"{name}_high"] = self.fit.parameter_interval(name)
        h = self.held_out
        if h is not None:
            keys = ("n_params", "predicted", "low", "high", "measured", "n_seeds", "inside")
            body["held_out"] = {key: getattr(h, key) for key in keys}
        return body

    def lines(self) -> list[str]:
        """The fit, and the prediction, a sentence each."""
        (e0, e1), (a0, a1) = self.fit.parameter_interval("E"), self.fit.parameter_interval("alpha")
        fit = self.fit
        found = [
            f"L(N) = {fit.E:.3f} + {fit.A:.3g} N^-{fit.alpha:.3f} over {len(self.losses)} sizes "
            f"(95 %: E {e0:.3f} to {e1:.3f}, alpha {a0:.3f} to {a1:.3f})"
        ]
        if h := self.held_out:
            where = "inside" if h.inside else "outside"
            found.append(
                f"largest size held out ({human_count(h.n_params)} parameters): predicted {h.predicted:.4f} "
                f"[{h.low:.4f}, {h.high:.4f}], measured {h.measured:.4f} ({where} the 95 % interval)"
            )
        return found


def scaling_of(arms: Sequence[ArmRow]) -> tuple[Scaling | None, str | None]:
    """The fit over a study's arms as sizes; or None and why there is none."""
    losses: dict[float, list[float]] = {}
    for row in arms:
        if row.n_params and row.values:
            losses.setdefault(float(row.n_params), []).extend(row.values.values())
    if len(losses) < MIN_SIZES:
        return None, f"no scaling fit: {len(losses)} sizes have results, {MIN_SIZES} are needed"
    sizes = sorted(losses)
    fit = fit_power_law(sizes, [losses[n] for n in sizes])
    held_out = holdout(losses) if len(sizes) > MIN_SIZES else None
    return Scaling({n: tuple(losses[n]) for n in sizes}, fit, held_out), None


def fit_power_law(
    n_params: Sequence[float], losses: Sequence[float | Sequence[float]], *, draws: int = DRAWS
) -> ScalingFit:
    """Fit L(N) to losses (nats), one or a list over seeds for every size.

    Raises ValueError for fewer than four different sizes, lengths that differ, or values that are not positive.
    """
    if len(n_params) != len(losses):
        raise ValueError(f"{len(n_params)} sizes but {len(losses)} losses; give one entry of losses per size")
    runs: dict[float, list[float]] = {}
    for n, loss in zip(n_params, losses):
        runs.setdefault(float(n), []).extend([loss] if isinstance(loss, int | float) else list(loss))
    sizes = sorted(runs)
    flat = [*sizes, *(v for values in runs.values() for v in values)]
    if not all(math.isfinite(v) and v > 0 for v in flat) or not all(runs.values()):
        raise ValueError(
            "sizes and losses must be positive and finite; leave diverged runs and empty sizes out"
        )
    if len(sizes) < MIN_SIZES:
        raise ValueError(
            f"{len(sizes)} sizes: a scaling law has three constants and needs at least {MIN_SIZES} sizes"
        )
    x = np.array(sizes)
    y, counts = np.array([np.mean(runs[n]) for n in sizes]), np.array([len(runs[n]) for n in sizes])
    E, A, alpha = _fit(x, y, counts)
    curve = E + A * x**-alpha
    squares = float(counts @ np.square(np.log(y / curve)))
    squares += sum(float(np.sum(np.square(np.log(runs[n]) - np.mean(np.log(runs[n]))))) for n in sizes)
    df = int(counts.sum()) - 3
    noise = math.sqrt(squares / df)
    again = curve * (1 + _noise_draws(noise, df, draws, len(x)) / np.sqrt(counts))
    return ScalingFit(E, A, alpha, noise, df, tuple(sizes), tuple(map(tuple, _fit_all(x, again, counts))))


def holdout(losses_by_size: Mapping[float, Sequence[float]]) -> HeldOut:
    """Fit without the largest size and predict it.

    Raises ValueError for fewer than five sizes (four to fit, one to predict).
    """
    sizes = sorted(losses_by_size)
    if len(sizes) <= MIN_SIZES:
        raise ValueError(
            f"{len(sizes)} sizes: predicting a held-out one needs {MIN_SIZES + 1}, {MIN_SIZES} of them to fit"
        )
    *small, largest = sizes
    fit = fit_power_law(small, [losses_by_size[n] for n in small])
    measured = losses_by_size[largest]
    low, high = fit.interval(largest, n_seeds=len(measured))
    return HeldOut(largest, fit.predict(largest), low, high, float(np.mean(measured)), len(measured), fit)


def _noise_draws(noise: float, df: int, n_draws: int, n_points: int) -> np.ndarray:
    """Relative deviations [draw, point]: normal, each draw with a standard deviation that the data allow."""
    rng = np.random.default_rng([DRAW_SEED, n_points])
    std = noise * np.sqrt(df / rng.chisquare(df, (n_draws, 1)))
    return np.clip(std * rng.standard_normal((n_draws, n_points)), -0.9, None)


def _fit(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """Robust least squares in log L over (log E, log of the falling part at the middle size, alpha)."""
    middle = math.exp(float(np.log(x).mean()))

    def residuals(p: np.ndarray) -> Any:
        return np.sqrt(counts) * (np.logaddexp(p[0], p[1] - p[2] * np.log(x / middle)) - np.log(y))

    E, A, alpha = _fit_all(x, y[None], counts)[0]
    starts = [(max(E, 1e-3 * y.min()), A * middle**-alpha, alpha)]
    starts += [(share * y.min(), (1 - share) * y.mean(), a) for share, a in ((0.3, 0.2), (0.8, 0.8))]
    bounds = ([-40.0, -40.0, 1e-3], [math.log(y.min()), 40.0, 5.0])
    found = [
        least_squares(
            residuals,
            np.clip([math.log(e), math.log(max(f, 1e-9)), a], bounds[0], np.array(bounds[1]) - 1e-9),
            bounds=bounds,
            loss="soft_l1",
            f_scale=ROBUST_SCALE,
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
            x_scale="jac",
            max_nfev=200,
        )
        for e, f, a in starts
    ]
    e, f, alpha = min(found, key=lambda r: r.cost).x
    return math.exp(e), math.exp(f) * middle**alpha, float(alpha)


def _fit_all(x: np.ndarray, y_RN: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(E, A, alpha) of every row of losses [row, size]: the alpha whose linear fit is closest.

    Found on a grid and again between its neighbours there: where E is 0, alpha's interval is narrower than the grid.
    Squared relative errors are weighed, E and A kept at 0 or above.
    """
    log_ratio = np.log(x) - float(np.log(x).mean())
    _, _, alpha_R = _closest(log_ratio, y_RN, counts, np.tile(ALPHAS, (len(y_RN), 1)))
    step = ALPHAS[1] / ALPHAS[0]
    E_R, F_R, alpha_R = _closest(
        log_ratio, y_RN, counts, alpha_R[:, None] * np.geomspace(1 / step, step, FINE)
    )
    return np.stack([E_R, F_R * np.exp(alpha_R * np.log(x).mean()), alpha_R], axis=1)


def _closest(
    log_ratio: np.ndarray, y_RN: np.ndarray, counts: np.ndarray, alpha_RG: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E, the falling part at the middle size, and alpha: the best of each row's own alphas, solved in closed form."""
    f_RGN = np.exp(-alpha_RG[:, :, None] * log_ratio)
    w_RN = counts / np.square(y_RN)
    s1, sy = w_RN.sum(1)[:, None], (w_RN * y_RN).sum(1)[:, None]
    sf, sff = np.einsum("rgn,rn->rg", f_RGN, w_RN), np.einsum("rgn,rn->rg", np.square(f_RGN), w_RN)
    sfy = np.einsum("rgn,rn->rg", f_RGN, w_RN * y_RN)
    syy = (w_RN * np.square(y_RN)).sum(1)[:, None]
    F = (s1 * sfy - sf * sy) / np.maximum(s1 * sff - np.square(sf), 1e-300)
    E = (sy - F * sf) / s1
    F, E = np.where(E < 0, sfy / sff, F), np.maximum(E, 0.0)
    E, F = np.where(F < 0, sy / s1, E), np.maximum(F, 0.0)
    cost = syy - 2 * E * sy - 2 * F * sfy + np.square(E) * s1 + 2 * E * F * sf + np.square(F) * sff
    best, rows = cost.argmin(1), np.arange(len(y_RN))
    return E[rows, best], F[rows, best], alpha_RG[rows, best]
