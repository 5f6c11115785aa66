"""How several workers a trial look on a terminal: what was measured, and what a model predicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fabric.job.units import human_count, human_seconds

if TYPE_CHECKING:
    from fabric.analysis.workers import WorkersRow
    from fabric.planning.parallel import Prediction


def table_of(*columns: str) -> Table:
    """A table without lines whose cells fold."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_workers(rows: Sequence[WorkersRow], console: Console) -> None:
    """Efficiencies by number of workers, a line each; the caption says of what."""
    from fabric.analysis.terminal import GAP, Column, arm_names, fitted

    def column(head: str, cells: Iterable[str], right: bool = True) -> Column:
        return Column(head, list(cells), right=right)

    arm, engine = arm_names([r.arm for r in rows]), column("engine", (r.engine for r in rows), right=False)
    workers = column("workers", (str(r.workers) for r in rows))
    batch, n = (
        column(h, (str(getattr(r, k)) for r in rows)) for h, k in (("batch", "batch_size"), ("n", "n"))
    )
    step = column("step", (_milliseconds(r.step_seconds) for r in rows))
    speed = column("tokens/s", (human_count(r.tokens_per_second) for r in rows))
    shares = [column(k, (_percent(getattr(r, k)) for r in rows)) for k in ("strong", "weak", "exposed")]
    wait = column("", ("" if r.exposed_seconds is None else _milliseconds(r.exposed_seconds) for r in rows))
    layouts = [
        [arm, engine, workers, batch, n, step, speed, *shares, wait],
        [arm, engine, workers, batch, step, *shares, wait],
        [arm, workers, batch, *shares],
    ]
    chosen = fitted(layouts, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP // 2))
    for each in chosen:
        table.add_column(Text(each.head), justify="right" if each.right else "left", no_wrap=True)
    for cells in zip(*(each.cells for each in chosen), strict=True):
        table.add_row(*map(Text, cells))
    console.print(Text("workers", style="bold"))
    console.print(table)
    caption = (
        "strong: T1 / (n Tn) at the same batch; weak: T1 / Tn at the same batch per worker; exposed: waiting for "
        "gradients, of a step. Workers that share a machine's cores do not show how a cluster scales."
    )
    console.print(Text(caption, style="italic"))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def print_prediction(found: Prediction, console: Console) -> None:
    """A table by number of workers, after the assumptions it stands on."""
    step = found.step
    console.print(
        f"prediction, not a measurement: {step.arm} ({step.n_params / 1e6:.4g} M parameters, {step.batch_size} "
        f"sequences a step, {_milliseconds(step.seconds)} on one worker) on {found.where}",
        style="bold",
    )
    for line in found.assumptions:
        console.print(f"- {line}")
    claims = any(p.claimed is not None for p in found.points)
    heads = ["workers", "all-reduce", "step", "speed-up", "same batch a worker"]
    table = table_of(*heads, *(["claimed, not measured"] if claims else []))
    for p in found.points:
        step_time = "" if p.step is None else _milliseconds(p.step)
        gains = ["" if g is None else f"{g:.4g}x" for g in (p.speedup, p.weak_speedup, p.claimed)]
        exchange = "" if p.workers == 1 else _milliseconds(p.exchange)
        table.add_row(str(p.workers), exchange, step_time, *gains[: 3 if claims else 2])
    console.print(table)
    if claims:
        console.print(
            "claimed: the document this project began with, for 110 M parameters; no measurement, hardware or batch "
            "size is behind it"
        )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else human_seconds(seconds)
