"""Equal parameters, FLOPs or state: solve a width in every arm so that arms differ in one thing only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from fabric.job.errors import explain
from fabric.job.load import Configuration, Job
from fabric.train.objectives.base import ObjectiveConfig
from fabric.train.objectives.next_token import NextToken
from models import n_params, state_bytes
from models.config import ModelConfig

MISMATCH_WARNED = 0.03
# By `match`, the section and the fields that are solved, the first that the part has.
WIDTHS = {
    "params": ("ffn", ("d_ff",)),
    "flops": ("ffn", ("d_ff",)),
    "state": ("mixer", ("kv_latent_dim", "latent_dim", "head_dim")),
}
LARGEST = 1 << 22


def solved_paths(what: str) -> tuple[str, ...]:
    """The paths of the widths that `search.match` may solve."""
    section, names = WIDTHS.get(what, ("", ()))
    return tuple(f"model.{section}.{name}" for name in names)


NEXT_TOKEN = NextToken(kind="next_token")
What = Literal["params", "flops", "state"]


def matched_configuration(
    job: Job, configuration: Configuration, base: Configuration
) -> tuple[Configuration, float | None]:
    """An arm's configuration with its width solved as `search.match` says, and the mismatch left (None: no match).

    Raises JobError, with the place of `search.match`, when the arm has no such width.
    """
    what = job.config.search.match
    if what == "none":
        return configuration, None
    try:
        model, mismatch = matched(
            configuration.model,
            base.model,
            what,
            configuration.data.seq_len,
            configuration.train.objective,
            configuration.data.n_asked,
        )
    except ValueError as error:
        raise explain(job.document, ("search", "match"), str(error)) from None
    if configuration.start is not None and model != configuration.model:
        message = (
            f"{what}: an arm that starts from {configuration.start.source} has the widths of its weights and cannot "
            "be matched; leave match out"
        )
        raise explain(job.document, ("search", "match"), message)
    return replace(configuration, model=model), mismatch


@lru_cache(maxsize=1024)
def matched(
    model: ModelConfig,
    target: ModelConfig,
    what: What,
    seq_len: int,
    objective: ObjectiveConfig = NEXT_TOKEN,
    n_asked: float | None = None,
) -> tuple[ModelConfig, float]:
    """The model with its width solved for the target's cost, and the relative mismatch that is left.

    Parameters and FLOPs are matched by the feed-forward width `ffn.d_ff`, state by the mixer's own width (head or
    latent size; layers of a `mixer_pattern` all get the same); FLOPs are those of `objective`, with `n_asked` positions
    asked of each example. A model that costs the same as it is stays as it is.
    Raises ValueError when the model has no such width, or none comes nearer than half or twice the target.
    """
    cost = _cost(what, seq_len, objective, n_asked)
    goal = cost(target)
    if cost(model) == goal:
        return model, 0.0
    section, names = WIDTHS[what]
    parts = dict.fromkeys(model.mixers if section == "mixer" else (model.ffn,))
    kinds = " and ".join(dict.fromkeys(repr(part.kind) for part in parts))
    name = next((n for n in names if all(n in type(part).model_fields for part in parts)), None)
    if name is None:
        lacks = "it has none" if len(parts) == 1 else "they share none"
        raise ValueError(f"{what}: {section} {kinds} has no width to solve ({lacks} of {', '.join(names)})")
    tried: dict[int, ModelConfig] = {}

    def at(width: int) -> float:
        tried[width] = _with_width(model, section, name, width)
        return cost(tried[width])

    # A rotated width must be even, and so must be a head.
    width = _solve(at, goal, 2 if name == "head_dim" else 1)
    mismatch = cost(tried[width]) / goal - 1.0
    if not -0.5 < mismatch < 1.0:
        raise ValueError(
            f"{what}: no {section}.{name} of {kinds} comes near the base's {goal:,.0f} "
            f"(the nearest, {width}, has {cost(tried[width]):,.0f}); change the arm, or leave match out"
        )
    return tried[width], mismatch


def _cost(
    what: What, seq_len: int, objective: ObjectiveConfig, n_asked: float | None
) -> Callable[[ModelConfig], float]:
    if what == "params":
        return lambda m: float(n_params(m))
    if what == "flops":
        return lambda m: objective.flops_per_token(m, seq_len, n_asked)
    return lambda m: float(state_bytes(m, seq_len, 2))


def _with_width(model: ModelConfig, section: str, name: str, width: int) -> ModelConfig:
    # Only what was set: some fields may not even be written at their default beside others.
    body = model.model_dump(exclude_unset=True)
    parts, bodies = [getattr(model, section)], [body[section]]
    if section == "mixer" and model.mixer_pattern:
        parts, bodies = parts + list(model.mixer_pattern), bodies + list(body["mixer_pattern"])
    for part, fields in zip(parts, bodies, strict=True):
        if name in type(part).model_fields:  # a mixer that no layer uses may lack it
            fields[name] = width
    return ModelConfig.model_validate(body)


def _solve(cost: Callable[[int], float], goal: float, step: int) -> int:
    """The width (a multiple of `step`) whose cost is nearest to the goal; cost grows with width."""
    low = high = step
    while cost(high) < goal and high < LARGEST:
        low, high = high, high * 2
    while high - low > step:
        middle = (low + high) // 2 // step * step
        low, high = (middle, high) if cost(middle) < goal else (low, middle)
    return min((low, high), key=lambda width: abs(cost(width) - goal))
