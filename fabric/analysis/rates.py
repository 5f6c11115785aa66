"""Learning rates: the choice inside an arm, and how much an arm cares (Wortsman et al. 2023, arXiv 2309.14322)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MIN_RATES = 5


@dataclass(frozen=True)
class RateDecision:
    """The rate an arm trains with. `edge`: it is the grid's smallest or largest, so a better one may lie outside.

    `mean` is its mean loss on the tuning seeds (None when every rate diverged); `points` are the inputs, the losses
    of diverged runs as None; `warning` is text for the user, or None.
    """

    lr: float
    mean: float | None
    edge: bool
    warning: str | None
    points: tuple[tuple[float, tuple[float | None, ...]], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data without NaN."""
        return asdict(self)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def pick_rate(points: Sequence[tuple[float, Sequence[float | None]]]) -> RateDecision:
    """The rate with the lowest mean loss on the tuning seeds; of equal ones the smaller.

    `points` are (rate, losses). A diverged run (NaN, infinite or None) makes its rate the worst. A rate that ASHA
    stopped has fewer losses than the others (or none): it stays part of the grid, but cannot be chosen, because a
    loss at an early rung compares with nothing. From two rates on, a best rate at the grid's edge is warned about.
    Raises ValueError without points, for repeated rates, or when no rate has a loss.
    """
    grid = sorted((float(lr), tuple(v if _is_finite(v) else None for v in losses)) for lr, losses in points)
    rates = [lr for lr, _ in grid]
    if not grid or len(set(rates)) != len(rates):
        raise ValueError(f"rates {rates}: give at least one, each once")
    most = max(len(losses) for _, losses in grid)
    if most == 0:
        raise ValueError(f"no tuning run finished at any of the rates {rates}")
    means = {
        lr: sum(v for v in losses if v is not None) / most
        for lr, losses in grid
        if len(losses) == most and None not in losses
    }
    if not means:
        text = f"every learning rate diverged; extend the grid below {human_rate(rates[0])}"
        return RateDecision(rates[0], None, len(rates) > 1, text, tuple(grid))
    best = min(means, key=lambda lr: (means[lr], lr))
    edge = len(rates) > 1 and best in (rates[0], rates[-1])
    warning = None
    if edge:
        side = "below" if best == rates[0] else "above"
        warning = (
            f"the best learning rate, {human_rate(best)}, is at the edge of the grid; "
            f"extend the grid {side} it"
        )
    return RateDecision(best, means[best], edge, warning, tuple(grid))


def human_rate(lr: float) -> str:
    """0.0003 -> '3e-4', 0.00025 -> '2.5e-4', 0.02 -> '0.02'."""
    if lr >= 1e-2:
        return f"{lr:g}"
    mantissa, exponent = f"{lr:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def lr_sensitivity(losses_by_lr: Mapping[float, float | None], initial_loss: float) -> float | None:
    """Mean over the rates of min(loss, initial loss) minus the best loss, in nats (arXiv 2309.14322, section 2).

    A diverged run counts with the initial loss (about ln of the vocabulary). None below five rates, where the mean
    says little, or when no rate trained.
    """
    if not math.isfinite(initial_loss):
        raise ValueError(f"initial_loss={initial_loss}; give the loss at initialisation")
    if len(losses_by_lr) < MIN_RATES or not any(_is_finite(v) for v in losses_by_lr.values()):
        return None
    capped = [
        min(v, initial_loss) if v is not None and math.isfinite(v) else initial_loss
        for v in losses_by_lr.values()
    ]
    return sum(capped) / len(capped) - min(capped)
