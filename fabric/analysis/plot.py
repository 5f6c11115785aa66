"""The results as pictures: a dot and an interval per arm, and the loss over sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fabric.analysis.decide import MIN_SEEDS
from fabric.analysis.scaling import Scaling
from fabric.analysis.table import ArmRow
from fabric.analysis.terminal import arm_names
from fabric.job.metrics import metric_info
from fabric.job.units import human_count

GOOD, BAD, BASE, NEUTRAL = "#1b7f3b", "#b3261e", "#1f2937", "#64748b"
COLOURS = {"better": GOOD, "adopted for cost": GOOD, "worse": BAD, "baseline": BASE}
BAND, LINE = "#e5e9ef", "#94a3b8"
WIDTH, ROW, TITLE, FOOT = 7.2, 0.27, 0.42, 0.75  # inches


def _figure(width: float, height: float) -> Any:
    """A figure with its own canvas: no global pyplot state, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot(rows: Sequence[ArmRow], path: Path | str) -> None:
    """Write a figure (format by the path's ending): mean and 95 % intervals per arm, one panel a phase.

    The thick bar is the paired difference's interval, drawn from the baseline's mean: it clears the baseline's line
    exactly when the verdict is better or worse. The thin bar is the interval of the arm's mean, which also holds
    what all arms' seeds have in common. The grey band is the baseline's mean ± one standard deviation over seeds,
    drawn from three seeds on. Small dots are seeds; hollow ones are runs that were stopped early, at their last
    loss, which no mean holds. A filled triangle marks the arm a phase adopts. Raises ValueError when no arm has a
    result.
    """
    shown = [r for r in rows if r.result or r.censored]
    if not shown:
        raise ValueError("nothing to draw: no arm has a finished run")
    phases = {p: [r for r in shown if r.phase == p] for p in dict.fromkeys(r.phase for r in shown)}
    heights = [ROW * len(v) + TITLE for v in phases.values()]
    figure = _figure(WIDTH, sum(heights) + FOOT)
    figure.get_layout_engine().set(h_pad=0.02, hspace=0.02)
    axes = figure.subplots(len(phases), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axis, (phase, arms) in zip(axes, phases.items()):
        _panel(axis, phase, arms)
    info = metric_info(shown[0].metric)
    name = "validation loss" if shown[0].metric == "val_loss" else shown[0].metric
    unit = f" ({info.unit})" if info and info.unit else ""
    axes[-1].set_xlabel(
        f"{name}{unit}: mean; 95 % intervals of it (thin) and of the paired difference (thick)", fontsize=9
    )
    _legend(figure, shown)
    figure.savefig(str(path), dpi=160)


def _panel(axis: Any, phase: str, arms: Sequence[ArmRow]) -> None:
    base = next((r.result for r in arms if r.is_baseline and r.result), None)
    if base and base.std is not None and base.n >= MIN_SEEDS:
        axis.axvspan(base.mean - base.std, base.mean + base.std, color=BAND, lw=0, zorder=0)
    if base:
        axis.axvline(base.mean, color=LINE, lw=0.8, ls=(0, (4, 3)), zorder=1)
    for y, row in enumerate(arms):
        _arm(axis, y, row, base.mean if base else None)
    names = arm_names([a.arm for a in arms])
    title = phase if names.head == "arm" else f"{phase}   ({names.head.replace(chr(10), ' ')})"
    axis.set_title(title, loc="left", fontsize=9, fontweight="bold", pad=3)
    axis.set_yticks(range(len(arms)), names.cells, fontsize=8.5)
    for label, row in zip(axis.get_yticklabels(), arms):
        label.set_fontweight("bold" if row.winner else "normal")
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.tick_params(axis="x", labelsize=8, color=LINE, labelcolor=BASE)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#eef1f5", lw=0.8, zorder=-1)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(LINE)


def _arm(axis: Any, y: int, row: ArmRow, base_mean: float | None) -> None:
    colour = COLOURS.get(row.verdict, NEUTRAL)
    axis.plot(list(row.values.values()), [y] * len(row.values), "o", ms=2.6, color=colour, alpha=0.4, mew=0)
    losses = [loss for _, loss in row.censored] if row.metric == "val_loss" else []
    axis.plot(losses, [y] * len(losses), "o", ms=4.5, mfc="none", mec=NEUTRAL, mew=0.8)
    if row.result is None:
        return
    r = row.result
    if r.n >= MIN_SEEDS and r.low is not None and r.high is not None:
        axis.plot([r.low, r.high], [y, y], "-", color=colour, lw=0.9, alpha=0.7, zorder=3)
    c = row.comparison
    if base_mean is not None and c and c.low is not None and c.high is not None:
        ends = [base_mean + c.low, base_mean + c.high]
        axis.plot(ends, [y, y], "-", color=colour, lw=3.2, solid_capstyle="butt", zorder=3)
    axis.plot([r.mean], [y], "o", ms=6.5, color=colour, mec="white", mew=0.8, zorder=4)
    if row.winner or row.goes_on:
        face = colour if row.winner else "none"
        place = {"transform": axis.get_yaxis_transform(), "clip_on": False}
        axis.plot([1.012], [y], "<", ms=6, color=colour, mfc=face, **place)


def _legend(figure: Any, rows: Sequence[ArmRow]) -> None:
    """The marks that this picture has."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def dot(colour: str, **options: Any) -> Line2D:
        return Line2D([], [], ls="none", marker="o", ms=6, color=colour, **options)

    verdicts = {r.verdict for r in rows}
    marks: list[tuple[Any, str]] = [(dot(BASE), "baseline")]
    if any(r.is_baseline and r.n >= MIN_SEEDS for r in rows):
        marks.append((Patch(color=BAND), "baseline ± 1 std over seeds"))
    marks += [(dot(GOOD), "adopted")] * bool(verdicts & {"better", "adopted for cost"})
    marks += [(dot(BAD), "worse")] * ("worse" in verdicts)
    marks += [(dot(NEUTRAL), "within noise")] * ("within noise" in verdicts)
    marks += [(dot(NEUTRAL), "undecided (n < 3)")] * any("undecided" in v for v in verdicts)
    marks += [(dot(NEUTRAL, mfc="none"), "stopped early")] * any(r.censored for r in rows)
    if any(r.winner for r in rows):
        marks.append((Line2D([], [], ls="none", marker="<", ms=6, color=NEUTRAL), "goes on"))
    if any(r.goes_on and not r.winner for r in rows):
        marks.append((Line2D([], [], ls="none", marker="<", ms=6, color=NEUTRAL, mfc="none"), "goes on too"))
    handles, labels = zip(*marks)
    options = {"loc": "outside lower center", "ncols": 4, "fontsize": 7.5, "frameon": False}
    figure.legend(handles, labels, handletextpad=0.5, columnspacing=1.4, **options)


def plot_scaling(scaling: Scaling, path: Path | str) -> None:
    """Write a log-log figure of loss against parameters: runs, the fitted curve with its 95 % band, and the largest
    size as predicted from the others."""
    figure = _figure(6.2, 4.2)
    axis = figure.subplots()
    sizes = np.array(list(scaling.losses))
    held = scaling.held_out
    fit = held.fit if held else scaling.fit
    grid = np.geomspace(sizes.min() / 1.2, sizes.max() * 2, 120)
    low, high = np.array([fit.interval(n) for n in grid]).T
    without = " without the largest size" if held else ""
    axis.fill_between(grid, low, high, color=BAND, lw=0, label="95 % band of the curve")
    law = f"{fit.E:.2f} + {fit.A:.3g} N$^{{-{fit.alpha:.2f}}}$, fitted{without}"
    axis.plot(grid, [fit.predict(n) for n in grid], color=BASE, lw=1.3, label=law)
    for n, values in scaling.losses.items():
        seen = held is None or n != held.n_params
        axis.plot([n] * len(values), values, "o", ms=4.5, color=BASE if seen else GOOD, mec="white", mew=0.6)
    axis.plot([], [], "o", ms=4.5, color=BASE, label="runs")
    shown = [v for values in scaling.losses.values() for v in values]
    if held:
        shown += [held.low, held.high]
        axis.errorbar(
            [held.n_params * 1.06], [held.predicted], [[held.predicted - held.low], [held.high - held.predicted]],
            fmt="s", ms=4.5, mfc="white", color=BAD, capsize=3, lw=1.2, label="predicted, 95 % interval",
        )  # fmt: skip
        axis.plot([], [], "o", ms=4.5, color=GOOD, label="measured, not in the fit")
    _log_axes(axis, sizes, shown)
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(str(path), dpi=160)


def _log_axes(axis: Any, sizes: np.ndarray, losses: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(sizes, [human_count(n) for n in sizes], fontsize=8, rotation=30)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(0.97 * min(losses), 1.03 * max(losses))
    axis.yaxis.set_major_locator(MaxNLocator(6))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.2f}"))
    axis.tick_params(axis="y", labelsize=8)
    axis.set_xlabel("parameters", fontsize=9)
    axis.set_ylabel("validation loss (nats/token)", fontsize=9)
    axis.grid(color="#eef1f5", lw=0.8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
