"""Which arm a phase adopts and which learning rate an arm trains with: rules fixed before the runs are seen.

An arm is adopted if its paired, Holm-corrected interval to the baseline excludes zero on the good side (of several
the one with the lowest mean); failing that, if it is cheaper and its interval ends below a margin that the job
states (with several cheaper arms, that test is Holm-corrected as well); else the baseline stays. Decisions carry
their inputs, so that each can be taken again and checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy.special import stdtr

from fabric.analysis.stats import (
    Pooled,
    holm,
    holm_levels,
    minimal_detectable_difference,
    paired,
    pooled_residual,
)

BETTER, WORSE, NOISE = "better", "worse", "within noise"
FOR_COST, TOO_FEW, DIVERGED, BASELINE = "adopted for cost", "undecided, n too small", "diverged", "baseline"
NO_BASELINE = "not compared, the baseline diverged"
MIN_SEEDS = 3


@dataclass(frozen=True)
class ArmResult:
    """One arm's losses (nats, lower is better) on the result's seeds, and its costs.

    A NaN or infinite loss counts as diverged, like the runs counted in `diverged` that have no loss at all; an arm
    none of whose runs came to its end (all failed or were stopped) is given with `diverged=1`.
    """

    name: str
    losses: Mapping[int, float]
    state_bytes: float
    flops: float
    diverged: int = 0

    @property
    def finite(self) -> dict[int, float]:
        return {s: float(v) for s, v in self.losses.items() if v is not None and math.isfinite(v)}

    @property
    def n_diverged(self) -> int:
        return self.diverged + len(self.losses) - len(self.finite)

    @property
    def cost(self) -> tuple[float, float]:
        """What cheaper means: state bytes, then FLOPs."""
        return (self.state_bytes, self.flops)


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline: difference of losses, Holm's p, and the interval at Holm's level.

    `std` is one seed's standard deviation of the difference and `df` its degrees of freedom; `pooled` says whether
    the noise of all arms went into it. Without an interval (n too small) only `n`, `diff` and `cheaper` are set.
    """

    n: int
    diff: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    level: float | None = None
    std: float | None = None
    df: int | None = None
    pooled: bool = False
    cheaper: bool = False


@dataclass(frozen=True)
class Decision:
    """A phase's decision with all its numbers and inputs; `to_json()` is what the store keeps.

    `ranking` holds every arm, the winner first and diverged arms last; `kept` the first `keep` of those that ran
    through. `detectable` is the smallest difference (nats) these seeds would have found with power 0.8.
    """

    winner: str
    baseline: str
    kept: tuple[str, ...]
    ranking: tuple[str, ...]
    verdict: Mapping[str, str]
    reason: str
    comparisons: Mapping[str, Comparison]
    spread: Pooled | None
    detectable: float | None
    rule: Mapping[str, float | int | None]
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data without NaN: dicts, lists, numbers, text."""
        return asdict(self)


def _check(arms: Sequence[ArmResult], baseline: str, margin: float | None, alpha: float, keep: int) -> None:
    names = [a.name for a in arms]
    if len(set(names)) != len(names):
        raise ValueError(f"arms are named twice: {names}; give each arm its own name")
    if baseline not in names:
        raise ValueError(f"baseline {baseline!r} is not among the arms {names}")
    if margin is not None and not margin > 0:
        raise ValueError(f"margin={margin}; give nats above 0, or None for no adoption for cost")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}; allowed: between 0 and 1")
    if not 1 <= keep <= len(arms):
        raise ValueError(f"keep={keep}; allowed: 1 to {len(arms)}, the number of arms")
    for arm in arms:
        if not arm.losses and not arm.diverged:
            raise ValueError(
                f"arm {arm.name!r} has neither losses nor diverged runs; leave it out of the decision"
            )


def _compare(
    arms: Sequence[ArmResult], base: ArmResult, alpha: float
) -> tuple[dict[str, Comparison], Pooled | None]:
    """Every arm that ran through against the baseline; Holm over those with enough common seeds."""
    tested = [a for a in arms if len(set(a.finite) & set(base.finite)) >= MIN_SEEDS]
    spread = pooled_residual({a.name: a.finite for a in [base, *tested]}) if tested else None
    std, df = (spread.std, spread.df) if spread and spread.allowed else (None, None)
    first = [paired(base.finite, a.finite, std, df, alpha) for a in tested]
    p_values = [f.p if f.p is not None else 1.0 for f in first]
    levels, corrected = holm_levels(p_values, alpha), holm(p_values)
    out: dict[str, Comparison] = {}
    for arm, level, p_holm in zip(tested, levels, corrected):
        c = paired(base.finite, arm.finite, std, df, level)
        pooled, cheaper = std is not None, arm.cost < base.cost
        out[arm.name] = Comparison(
            c.n, c.diff, c.low, c.high, c.p, p_holm, level, c.std, c.df, pooled, cheaper
        )
    for arm in arms:
        if arm.name not in out:
            out[arm.name] = _too_few(arm, base)
    return out, spread


def _too_few(arm: ArmResult, base: ArmResult) -> Comparison:
    """A difference without an interval: over common seeds where there are any, else of the means."""
    n = len(set(arm.finite) & set(base.finite))
    if n:
        diff = paired(base.finite, arm.finite).diff
    else:
        diff = _mean(arm) - _mean(base)
    return Comparison(n, diff, cheaper=arm.cost < base.cost)


def _mean(arm: ArmResult) -> float:
    return sum(arm.finite.values()) / len(arm.finite)


def _verdict(c: Comparison) -> str:
    if c.low is None or c.high is None:
        return TOO_FEW
    if c.high < 0:
        return BETTER
    return WORSE if c.low > 0 else NOISE


def decide(
    arms: Sequence[ArmResult],
    baseline: str,
    *,
    margin: float | None = None,
    alpha: float = 0.05,
    keep: int = 1,
) -> Decision:
    """The phase's winner, every arm's verdict, and the numbers behind them.

    Seeds pair the arms. Fewer than three common seeds: the lowest mean wins, marked undecided (arms with too few
    seeds beside others with enough are undecided and cannot win). An arm with one diverged run is the worst, whatever
    its others reached; when the baseline is, the lowest mean of the arms that ran through wins, uncompared. `margin`
    in nats; None: no adoption for cost. Raises ValueError for unknown or repeated names and values out of range.
    """
    _check(arms, baseline, margin, alpha, keep)
    base = next(a for a in arms if a.name == baseline)
    sound = [a for a in arms if not a.n_diverged]
    verdict = {a.name: DIVERGED for a in arms if a.n_diverged}
    comparisons: dict[str, Comparison] = {}
    spread = None
    if base in sound:
        others = [a for a in sound if a is not base]
        comparisons, spread = _compare(others, base, alpha)
        verdict |= {baseline: BASELINE} | {name: _verdict(c) for name, c in comparisons.items()}
        winner, reason = _choose(others, base, comparisons, verdict, margin, alpha)
        if verdict[winner] in (NOISE, WORSE):
            verdict[winner] = FOR_COST
        height = {baseline: 0.0} | {name: c.diff for name, c in comparisons.items()}
    else:
        winner, reason = _without_baseline(sound, baseline)
        verdict |= {a.name: NO_BASELINE for a in sound}
        height = {a.name: _mean(a) for a in sound}
    ranked = sorted(
        height, key=lambda name: (name != winner, height[name])
    )  # stable: ties in the order given
    return Decision(
        winner=winner,
        baseline=baseline,
        kept=tuple(ranked[:keep]) or (winner,),
        ranking=(*ranked, *(a.name for a in arms if a.name not in height)),
        verdict={a.name: verdict[a.name] for a in arms},
        reason=reason,
        comparisons=comparisons,
        spread=spread,
        detectable=_detectable(comparisons, alpha),
        rule={"alpha": alpha, "margin": margin, "keep": keep, "min_seeds": MIN_SEEDS},
        inputs={a.name: _input(a) for a in arms},
    )


def _choose(
    others: Sequence[ArmResult],
    base: ArmResult,
    comparisons: Mapping[str, Comparison],
    verdict: Mapping[str, str],
    margin: float | None,
    alpha: float,
) -> tuple[str, str]:
    """The winner beside a sound baseline, and why, in a sentence."""

    def diff(arm: ArmResult) -> float:
        return comparisons[arm.name].diff

    if not others:
        return base.name, "the baseline is the only arm that ran through"
    if all(verdict[a.name] == TOO_FEW for a in others):
        best = min([base, *others], key=lambda a: 0.0 if a is base else diff(a))
        return best.name, f"lowest mean; {TOO_FEW} (fewer than {MIN_SEEDS} common seeds)"
    better = [a for a in others if verdict[a.name] == BETTER]
    if better:
        best = min(better, key=diff)
        c = comparisons[best.name]
        return best.name, f"better than {base.name} by {-diff(best):.4g} nats (Holm p = {c.p_holm:.3g})"
    if within := _surely_within(others, comparisons, margin, alpha):
        cheapest = min(within, key=lambda a: (a.cost, diff(a)))
        high = comparisons[cheapest.name].high
        return cheapest.name, f"cheaper than {base.name}, at most {high:.4g} nats worse (margin {margin:g})"
    return base.name, f"no arm is better than {base.name} beyond the noise"


def _surely_within(
    others: Sequence[ArmResult], comparisons: Mapping[str, Comparison], margin: float | None, alpha: float
) -> list[ArmResult]:
    """The cheaper arms that are not worse than the baseline by `margin`: one-sided at alpha / 2, Holm over them."""
    cheaper = [a for a in others if comparisons[a.name].cheaper and comparisons[a.name].df]
    if margin is None:
        return []
    p_values = [_p_beyond(comparisons[a.name], margin) for a in cheaper]
    found = []
    for arm, p in zip(cheaper, holm(p_values)):
        high = comparisons[arm.name].high
        if p <= alpha / 2 and high is not None and high < margin:
            found.append(arm)
    return found


def _p_beyond(c: Comparison, margin: float) -> float:
    """The chance of a difference this small or smaller if the arm were truly `margin` worse."""
    assert c.df is not None
    assert c.std is not None
    error = c.std / math.sqrt(c.n)
    if error == 0:
        return 0.0 if c.diff < margin else 1.0
    return float(stdtr(c.df, (c.diff - margin) / error))


def _without_baseline(sound: Sequence[ArmResult], baseline: str) -> tuple[str, str]:
    if not sound:
        return baseline, "no arm ran through; the baseline stays"
    return min(sound, key=_mean).name, f"{baseline} did not run through; lowest mean of those that did"


def _detectable(comparisons: Mapping[str, Comparison], alpha: float) -> float | None:
    """The largest over the arms of what each one's noise would have let through, at Holm's strictest level."""
    found = []
    for c in comparisons.values():
        if c.std and c.df:
            strict = alpha / len(comparisons)
            found.append(minimal_detectable_difference(c.std, c.n, strict, df=c.df))
    return max((f for f in found if f is not None), default=None)


def _input(arm: ArmResult) -> dict[str, Any]:
    return {
        "losses": {str(s): v for s, v in sorted(arm.finite.items())},
        "diverged": arm.n_diverged,
        "state_bytes": arm.state_bytes,
        "flops": arm.flops,
    }
