"""What a study decides from finished trials: an arm's rate, a phase's winner. Pure: values in, a record out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fabric.analysis.decide import ArmResult, decide
from fabric.analysis.rates import pick_rate
from fabric.job.schema import SelectConfig
from fabric.planning.expand import Arm
from fabric.planning.tasks import ArmRun, PhaseRun, Trial
from fabric.store import FINISHED

LastValue = Callable[[Trial], float | None]
LOWEST = "lowest mean validation loss over the tuning seeds"


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """The mean, or None when any value is missing or not finite (a run diverged)."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return sum(finite) / len(finite) if finite and len(finite) == len(values) else None


def rate_decision(arm: ArmRun, points: Sequence[Arm], n_seeds: int, last_value: LastValue) -> dict[str, Any]:
    """The point an arm's main trials take; one that was stopped, failed or diverged on any seed is no candidate."""
    if len(points) == 1:
        return {"point": points[0].name, "why": "nothing to choose"}
    seen: dict[str, list[float | None]] = {p.name: [] for p in points}
    for trial in arm.tuning:
        if trial.end == FINISHED:
            seen[trial.point].append(last_value(trial))
    means = {n: mean_or_none(v) for n, v in seen.items() if len(v) == n_seeds}
    finite = {n: m for n, m in means.items() if m is not None}
    if not finite:
        return {"point": None, "why": "every rate diverged, failed or was stopped", "seen": seen}
    rates = {p.name: rate for p in points if (rate := _rate_of(p)) is not None}
    if len(rates) == len(points):
        choice = pick_rate([(rate, seen[name] if name in means else []) for name, rate in rates.items()])
        point = next(name for name, rate in rates.items() if rate == choice.lr)
        return {"point": point, "why": LOWEST, "warning": choice.warning, "seen": seen}
    return {"point": min(finite, key=lambda n: finite[n]), "why": LOWEST, "seen": seen}


def _rate_of(point: Arm) -> float | None:
    """The learning rate of a point that sets nothing else; None for others."""
    if len(point.overrides) != 1 or point.overrides[0].path.split(".")[-1] != "lr":
        return None
    try:
        return float(point.overrides[0].value)
    except (TypeError, ValueError):
        return None


def phase_decision(
    run: PhaseRun, bodies: Sequence[Mapping[str, Any]], select: SelectConfig, last_value: LastValue
) -> dict[str, Any]:
    """The arm a phase adopts, from its finished main trials; `bodies` are the arms' costs, in their order."""
    results = []
    for arm, body in zip(run.arms, bodies, strict=True):
        finished = [t for t in arm.main or [] if t.end == FINISHED]
        losses = {t.seed: last_value(t) for t in finished}
        results.append(
            ArmResult(
                arm.arm.name,
                {s: v for s, v in losses.items() if v is not None},
                body["state_bytes"],
                body["flops_per_token"],
                # An arm without a single finished trial stands with the diverged ones.
                diverged=sum(v is None for v in losses.values()) or int(not finished),
            )
        )
    keep = min(run.keep, len(results))
    decision = decide(results, run.baseline, margin=select.margin, alpha=select.alpha, keep=keep)
    return {"phase": run.name, "index": run.index, **decision.to_json()}
