"""From trials to the table: one row per phase and arm, with interval, paired difference and verdict.

Only finished runs on the result's seeds are averaged. Runs that were stopped early, diverged or failed are counted
beside them; a censored loss is never mixed with a final one. Equal tokens, equal FLOPs and equal wall time are three
columns: the validation loss at the largest budget that every run of the phase reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from fabric.analysis.decide import ArmResult, Comparison, Decision, decide
from fabric.analysis.stats import Summary, summary
from fabric.analysis.workers import Ran
from fabric.job.metrics import metric_info

Point = tuple[float, float, float, float]  # tokens, FLOPs, seconds, validation loss
Outcome = Literal["finished", "censored", "diverged", "failed", "running"]
BUDGETS = ("tokens", "flops", "seconds")


@dataclass(frozen=True)
class TrialRow:
    """One trial as the table sees it.

    `role`: a tuning run chooses the learning rate and is in no result; `state` is the store's (finished, stopped,
    running, failed), `reason` what it wrote about the end (its `kind`); `metrics` use the keys of `fabric.job.metrics`;
    `history` holds (tokens, FLOPs, seconds, validation loss) in order; `numerics` is the fingerprint it ran under,
    `ran` on how many workers.
    """

    phase: str
    arm: str
    seed: int
    role: Literal["tuning", "main"]
    lr: float | None
    state: str
    reason: Mapping[str, Any] | None
    metrics: Mapping[str, Any]
    n_params: int | None = None
    state_bytes: float | None = None
    flops_per_token: float | None = None
    history: Sequence[Point] = ()
    numerics: str | None = None
    ran: Ran | None = None

    @property
    def outcome(self) -> Outcome:
        """How it ended: converging by itself is finished, being stopped is censored, no final loss is diverged."""
        if self.state == "finished":
            lost = "val_loss" in self.metrics and _finite(self.metrics["val_loss"]) is None
            return "diverged" if lost or (self.reason or {}).get("kind") == "diverged" else "finished"
        if self.state == "stopped":
            return "censored"
        return "failed" if self.state == "failed" else "running"


@dataclass(frozen=True)
class ArmRow:
    """One arm of one phase. `comparison` (interval and p Holm-corrected within the phase) is None for the baseline
    and where there is nothing to compare; `counts` are the result's trials by outcome, `tuning_counts` the tuning
    ones; `winner` marks the arm the phase adopts, once all its trials have ended, and `goes_on` it and the others the
    next phase is built on (the phase's `keep`); `equal` holds the mean validation
    loss at the phase's common budget (`budget`) of tokens, FLOPs and seconds; `means` the means of all
    other metrics over the runs that count; `censored` the (tokens, loss) of the result's early-stopped runs.
    """

    phase: str
    arm: str
    metric: str
    is_baseline: bool
    verdict: str
    result: Summary | None
    comparison: Comparison | None
    counts: Mapping[str, int]
    lr: float | None
    n_params: int | None
    state_bytes: float | None
    flops_per_token: float | None
    equal: Mapping[str, float | None]
    budget: Mapping[str, float | None]
    means: Mapping[str, float]
    censored: tuple[tuple[float, float], ...] = ()
    values: Mapping[int, float] = field(default_factory=dict)
    tuning_counts: Mapping[str, int] = field(default_factory=dict)
    winner: bool = False
    goes_on: bool = False

    @property
    def n(self) -> int:
        return self.result.n if self.result else 0

    def to_json(self) -> dict[str, Any]:
        """Plain data without NaN."""
        return asdict(self)


def aggregate(
    rows: Sequence[TrialRow],
    baseline_per_phase: Mapping[str, str],
    metric: str = "val_loss",
    *,
    margin: float | None = None,
    alpha: float = 0.05,
) -> list[ArmRow]:
    """One `ArmRow` per phase and arm: phases in the order of the rows, the baseline first, then from best to worst.

    `metric` must have a direction; the verdicts follow `decide` (with `margin` only if the metric is in nats and
    lower is better). Raises ValueError for an unknown metric and for two main runs of one arm with one seed.
    """
    info = metric_info(metric)
    if info is None or info.better is None:
        raise ValueError(f"metric {metric!r} is unknown or has no better direction; use one like 'val_loss'")
    sign = 1.0 if info.better == "lower" else -1.0
    out: list[ArmRow] = []
    for phase in dict.fromkeys(r.phase for r in rows):
        mine = [r for r in rows if r.phase == phase]
        arms = {a: [r for r in mine if r.arm == a] for a in dict.fromkeys(r.arm for r in mine)}
        decision = _decision(arms, baseline_per_phase.get(phase), metric, sign, margin, alpha)
        budget = {b: _common_budget(mine, i) for i, b in enumerate(BUDGETS)}
        made = [
            _arm_row(trials, metric, sign, decision, arm == baseline_per_phase.get(phase), budget)
            for arm, trials in arms.items()
        ]
        if decision is not None and not any(r.outcome == "running" for r in mine):
            made = [replace(r, winner=r.arm == decision.winner) for r in made]
        made.sort(key=lambda r: (not r.is_baseline, sign * r.result.mean if r.result else math.inf))
        out += made
    return out


def _finite(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def _values(trials: Sequence[TrialRow], metric: str) -> dict[int, float]:
    """The metric by seed over the runs that count: finished, on the result's seeds."""
    out: dict[int, float] = {}
    for r in trials:
        value = _finite(r.metrics.get(metric))
        if r.role == "main" and r.outcome == "finished" and value is not None:
            if r.seed in out:
                raise ValueError(f"phase {r.phase!r}, arm {r.arm!r}: two main runs with seed {r.seed}")
            out[r.seed] = value
    return out


def _decision(
    arms: Mapping[str, Sequence[TrialRow]],
    baseline: str | None,
    metric: str,
    sign: float,
    margin: float | None,
    alpha: float,
) -> Decision | None:
    """`decide` on what the phase has, by the same rules as the phase itself; None without a baseline's result.

    An arm that ended without a finished run (all failed or stopped, or no rate trained) stands with the diverged.
    """
    results = []
    for arm, trials in arms.items():
        values = {s: sign * v for s, v in _values(trials, metric).items()}
        diverged = sum(r.role == "main" and r.outcome == "diverged" for r in trials)
        ended = not any(r.outcome == "running" for r in trials)
        diverged = diverged or int(not values and ended and _missing(trials) != "running")
        if values or diverged:
            state, flops = (
                next((_finite(getattr(r, k)) for r in trials), None)
                for k in ("state_bytes", "flops_per_token")
            )
            known = [math.inf if c is None else c for c in (state, flops)]
            results.append(ArmResult(arm, values, known[0], known[1], diverged))
    if baseline not in [r.name for r in results]:
        return None
    return decide(results, str(baseline), margin=margin if sign > 0 else None, alpha=alpha)


def _arm_row(
    trials: Sequence[TrialRow],
    metric: str,
    sign: float,
    decision: Decision | None,
    is_baseline: bool,
    budget: Mapping[str, float | None],
) -> ArmRow:
    first = trials[0]
    main = [r for r in trials if r.role == "main"]
    counted = [r for r in main if r.outcome == "finished"]
    values = _values(trials, metric)
    comparison = decision.comparisons.get(first.arm) if decision else None
    verdict = decision.verdict.get(first.arm) if decision else None
    keys = dict.fromkeys(k for r in counted for k in r.metrics)
    found = {k: [v for r in counted if (v := _finite(r.metrics.get(k))) is not None] for k in keys}
    return ArmRow(
        phase=first.phase,
        arm=first.arm,
        metric=metric,
        is_baseline=is_baseline,
        verdict=_verdict(verdict, trials, bool(values)),
        result=summary(list(values.values())) if values else None,
        comparison=comparison if sign > 0 or comparison is None else _flipped(comparison),
        counts=_counts(main),
        tuning_counts=_counts([r for r in trials if r.role == "tuning"]),
        lr=next((r.lr for r in main), None),
        n_params=first.n_params,
        state_bytes=first.state_bytes,
        flops_per_token=first.flops_per_token,
        equal={b: _mean_at(counted, i, budget[b]) for i, b in enumerate(BUDGETS)},
        budget=dict(budget),
        means={k: sum(v) / len(v) for k, v in found.items() if v},
        censored=tuple(
            (r.history[-1][0], r.history[-1][3]) for r in main if r.outcome == "censored" and r.history
        ),
        values=values,
    )


def _counts(trials: Sequence[TrialRow]) -> dict[str, int]:
    outcomes = [r.outcome for r in trials]
    return {o: outcomes.count(o) for o in get_args(Outcome) if o in outcomes}


def _verdict(decided: str | None, trials: Sequence[TrialRow], has_values: bool) -> str:
    """The decision's word; for an arm without a result, what became of its runs."""
    if not has_values:
        return _missing(trials)
    return decided or "no baseline"


def _missing(trials: Sequence[TrialRow]) -> str:
    """What became of an arm without a result: of its main runs, or, when no rate trained, of its tuning runs."""
    outcomes = {r.outcome for r in trials if r.role == "main"} or {r.outcome for r in trials}
    return "running" if outcomes & {"running", "finished"} else " and ".join(sorted(outcomes))


def _flipped(c: Comparison) -> Comparison:
    """The comparison of a metric of which more is better, back in the metric's own direction."""
    low = None if c.high is None else -c.high
    high = None if c.low is None else -c.low
    return Comparison(c.n, -c.diff, low, high, c.p, c.p_holm, c.level, c.std, c.df, c.pooled, c.cheaper)


def _common_budget(trials: Sequence[TrialRow], axis: int) -> float | None:
    """The largest budget that every run of the phase that counts has reached."""
    ends = [r.history[-1][axis] for r in trials if r.role == "main" and r.outcome == "finished" and r.history]
    return float(min(ends)) if ends else None


def _mean_at(trials: Sequence[TrialRow], axis: int, budget: float | None) -> float | None:
    """Mean loss at a budget, each run's history interpolated linearly; None before a run's first evaluation."""
    losses = []
    for r in trials:
        points = [
            (p[axis], p[3]) for p in r.history if _finite(p[axis]) is not None and _finite(p[3]) is not None
        ]
        if budget is None or not points or not points[0][0] <= budget <= points[-1][0]:
            return None
        x, y = zip(*points)
        losses.append(float(np.interp(budget, x, y)))
    return sum(losses) / len(losses) if losses else None
