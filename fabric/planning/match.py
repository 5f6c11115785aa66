"""Equal parameters, FLOPs or state: solve a width in every arm so that arms differ in one thing only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from models import flops_per_token, n_params, state_bytes
from models.config import ModelConfig

MISMATCH_WARNED = 0.03
STATE_WIDTHS = ("kv_latent_dim", "latent_dim", "head_dim")


def matched(
    model: ModelConfig, target: ModelConfig, what: Literal["params", "flops", "state"], seq_len: int
) -> tuple[ModelConfig, float]:
    """The model with its width solved for the target's cost, and the relative mismatch that is left.

    Parameters and FLOPs are matched by the feed-forward width `ffn.d_ff`, state by the mixer's own width (head or
    latent size). Raises ValueError when the model has no such width.
    """
    cost = _cost(what, seq_len)
    goal = cost(target)
    if what == "state":
        names = [n for n in STATE_WIDTHS if n in type(model.mixer).model_fields]
        if not names:
            raise ValueError(f"match: state has no width to solve in mixer {model.mixer.kind!r}")
        set_width = _setter(model, "mixer", names[0])
        start, step = 2, 2
    else:
        set_width = _setter(model, "ffn", "d_ff")
        start, step = 1, 1
    best = _solve(lambda width: cost(set_width(width)), goal, start, step)
    solved = set_width(best)
    return solved, cost(solved) / goal - 1.0


def _cost(what: str, seq_len: int) -> Callable[[ModelConfig], float]:
    if what == "params":
        return lambda m: float(n_params(m))
    if what == "flops":
        return lambda m: float(flops_per_token(m, seq_len))
    return lambda m: float(state_bytes(m, seq_len, 2))


def _setter(model: ModelConfig, section: str, name: str) -> Callable[[int], ModelConfig]:
    def set_width(width: int) -> ModelConfig:
        body = model.model_dump()
        body[section][name] = width
        return ModelConfig.model_validate(body)

    return set_width


def _solve(cost: Callable[[int], float], goal: float, start: int, step: int) -> int:
    """The width (a multiple of `step`) whose cost is nearest to the goal; cost grows with width."""
    low, high = start, start
    while cost(high) < goal and high < 1 << 22:
        low, high = high, high * 2
    while high - low > step:
        middle = (low + high) // 2 // step * step
        if middle <= low:
            break
        low, high = (middle, high) if cost(middle) < goal else (low, middle)
    return min((low, high), key=lambda width: abs(cost(width) - goal))
