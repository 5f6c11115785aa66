"""The results as one picture: a dot and an interval per arm, and how much the baseline varies by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fabric.analysis.decide import MIN_SEEDS
from fabric.analysis.table import ArmRow
from fabric.job.metrics import metric_info

COLOURS = {"better": "#1b7f3b", "adopted for cost": "#1b7f3b", "worse": "#b3261e", "baseline": "#222222"}
NEUTRAL = "#5f6b7a"


def plot(rows: Sequence[ArmRow], path: Path | str) -> None:
    """Write a figure (format by the path's ending): mean and intervals per arm, one panel a phase.

    The thick bar is the paired difference's interval, drawn from the baseline's mean: it clears the baseline's line
    exactly when the verdict is better or worse. The thin bar is the 95 % interval of the mean over seeds, which
    holds what the seeds have in common; the grey band the baseline's mean ± one standard deviation. Small dots are
    seeds, hollow ones the result's runs that were stopped early, at their last loss (never averaged).
    Raises ValueError when no arm has a result.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [r for r in rows if r.result or r.censored]
    if not shown:
        raise ValueError("nothing to draw: no arm has a finished run")
    phases = {p: [r for r in shown if r.phase == p] for p in dict.fromkeys(r.phase for r in shown)}
    heights = [len(v) + 1 for v in phases.values()]
    figure = Figure(figsize=(7.5, 0.34 * sum(heights) + 0.45 * len(phases) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)  # no global pyplot state, no display
    axes = figure.subplots(len(phases), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axis, (phase, arms) in zip(axes, phases.items()):
        _panel(axis, phase, arms)
    info = metric_info(shown[0].metric)
    unit = f" ({info.unit})" if info and info.unit else ""
    axes[-1].set_xlabel(
        f"{shown[0].metric}{unit}. Thick: paired difference to the baseline, 95 %, Holm; thin: mean over seeds, "
        "95 %;\nsmall: seeds; hollow: stopped early; grey: the baseline's standard deviation",
        fontsize=8,
    )
    figure.savefig(str(path), dpi=150)


def _panel(axis, phase: str, arms: Sequence[ArmRow]) -> None:
    base = next((r.result for r in arms if r.is_baseline and r.result), None)
    if base and base.std is not None and base.n >= MIN_SEEDS:
        axis.axvspan(base.mean - base.std, base.mean + base.std, color="#e8ebef", lw=0, zorder=0)
    if base:
        axis.axvline(base.mean, color="#9aa4b1", lw=0.8, zorder=1)
    for y, row in enumerate(arms):
        colour = COLOURS.get(row.verdict, NEUTRAL)
        axis.plot(list(row.values.values()), [y] * len(row.values), ".", ms=3, color=colour, alpha=0.45)
        losses = [loss for _, loss in row.censored] if row.metric == "val_loss" else []
        axis.plot(losses, [y] * len(losses), "o", ms=5, mfc="none", mec=NEUTRAL, mew=0.8)
        r, c = row.result, row.comparison
        if r and r.n >= MIN_SEEDS and r.low is not None and r.high is not None:
            axis.plot([r.low, r.high], [y, y], "-", color=colour, lw=0.8, alpha=0.6)
        if base and c and c.low is not None and c.high is not None:
            ends = [base.mean + c.low, base.mean + c.high]
            axis.plot(ends, [y, y], "-", color=colour, lw=3, solid_capstyle="butt")
        if r:
            axis.plot([r.mean], [y], "o", ms=6, color=colour)
    axis.set_yticks(range(len(arms)), [f"{r.arm}  (n={r.n})" for r in arms], fontsize=8)
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_title(phase, loc="left", fontsize=9, fontweight="bold")
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
