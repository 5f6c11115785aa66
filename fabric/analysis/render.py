"""The table for eyes (rich, Markdown), for machines (CSV, JSON, Parquet), and as a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.analysis.decide import MIN_SEEDS
from fabric.analysis.rates import human_rate
from fabric.analysis.table import BUDGETS, ArmRow
from fabric.job.metrics import metric_info
from fabric.job.units import human_bytes, human_count, human_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

GOOD, BAD = ("better", "adopted for cost"), ("worse", "diverged")


def flat(row: ArmRow) -> dict[str, Any]:
    """One row as one level of keys: what the files hold. Numbers unrounded, None for what is not known."""
    c, s = row.comparison, row.result
    out: dict[str, Any] = {
        "phase": row.phase,
        "arm": row.arm,
        "baseline": row.is_baseline,
        "metric": row.metric,
        "verdict": row.verdict,
        "n": row.n,
        "mean": s.mean if s else None,
        "low": s.low if s else None,
        "high": s.high if s else None,
        "std": s.std if s else None,
    }
    out |= {
        "diff": c.diff if c else None,
        "diff_low": c.low if c else None,
        "diff_high": c.high if c else None,
        "diff_level": c.level if c else None,
        "p": c.p if c else None,
        "p_holm": c.p_holm if c else None,
        "pooled": c.pooled if c else None,
    }
    for outcome in ("censored", "diverged", "failed", "running"):
        out[f"n_{outcome}"] = row.counts.get(outcome, 0)
    out |= {"lr": row.lr, "n_params": row.n_params, "state_bytes": row.state_bytes}
    out["flops_per_token"] = row.flops_per_token
    for budget in BUDGETS:
        out[f"val_loss_at_equal_{budget}"] = row.equal[budget]
        out[f"equal_{budget}"] = row.budget[budget]
    taken = {"lr", "n_params", "state_bytes", "flops_per_token"}
    return out | {key: value for key, value in row.means.items() if key not in taken}


def _flat_all(rows: Sequence[ArmRow]) -> tuple[list[str], list[dict[str, Any]]]:
    flats = [flat(r) for r in rows]
    columns = list(dict.fromkeys(key for f in flats for key in f))
    return columns, [{c: f.get(c) for c in columns} for f in flats]


def to_csv(rows: Sequence[ArmRow], path: Path | str) -> None:
    """Write one line per arm; unknown values are empty."""
    columns, flats = _flat_all(rows)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(flats)


def to_json(rows: Sequence[ArmRow], path: Path | str | None = None) -> str:
    """A JSON list with one object per arm, also written to `path` when given; unknown values are null."""
    text = json.dumps(_flat_all(rows)[1], indent=1, allow_nan=False)
    if path is not None:
        Path(path).write_text(text + "\n", encoding="utf-8")
    return text


def to_parquet(rows: Sequence[ArmRow], path: Path | str) -> None:
    """Write one row per arm; a column that is unknown for all arms is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, flats = _flat_all(rows)
    pq.write_table(pa.table({c: pa.array([f[c] for f in flats]) for c in columns}), str(path))


def _digits(rows: Sequence[ArmRow]) -> int:
    info = metric_info(rows[0].metric) if rows else None
    return 4 if info is None or info.unit != "tokens/s" else 0


def _number(value: float | None, digits: int, sign: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def result_cells(row: ArmRow, digits: int = 4) -> list[str]:
    """Arm, n (with what is not in it), mean ± half interval, paired difference, Holm's p, verdict."""
    beside = {"censored": "stopped", "diverged": "diverged", "failed": "failed", "running": "running"}
    extra = [f"{n} {beside[o]}" for o, n in row.counts.items() if o in beside]
    mean, diff, p = "", "", ""
    if row.result:
        mean = _number(row.result.mean, digits)
        if row.n >= MIN_SEEDS and row.result.high is not None:
            mean += f" ± {row.result.high - row.result.mean:.{digits}f}"
    c = row.comparison
    if c:
        diff = _number(c.diff, digits, sign=True)
        if c.low is not None and c.high is not None:
            diff += f" [{_number(c.low, digits, True)}, {_number(c.high, digits, True)}]"
        p = "" if c.p_holm is None else ("<0.001" if c.p_holm < 0.001 else f"{c.p_holm:.3f}")
    verdict = row.verdict
    if row.is_baseline and 0 < row.n < MIN_SEEDS:
        verdict += ", n too small"
    return [row.arm, " + ".join([str(row.n), *extra]), mean, diff, p, verdict]


def cost_cells(row: ArmRow) -> list[str]:
    """Arm, loss at equal tokens, FLOPs and seconds, learning rate, parameters, state, tokens/s."""
    speed = row.means.get("tokens_per_second")
    state = row.means.get("state_bytes_per_token")
    return [
        row.arm,
        *(_number(row.equal[b], 4) for b in BUDGETS),
        "" if row.lr is None else human_rate(row.lr),
        "" if row.n_params is None else human_count(row.n_params),
        "" if state is None else human_bytes(state),
        "" if speed is None else human_count(speed),
    ]


def _heads(rows: Sequence[ArmRow]) -> tuple[list[str], list[str]]:
    result = ["arm", "n", rows[0].metric, "difference [interval]", "p", "verdict"]
    return result, ["arm", "= tokens", "= FLOPs", "= time", "rate", "params", "state/token", "tokens/s"]


def budget_line(row: ArmRow) -> str:
    """What the equal-budget columns of a phase stand for."""
    shown = {"tokens": lambda v: human_count(v) + " tokens", "flops": lambda v: human_count(v) + "FLOPs"}
    shown["seconds"] = human_seconds
    known = [shown[b](v) for b in BUDGETS if (v := row.budget[b]) is not None]
    return "validation loss at " + ", ".join(known) if known else "no histories"


def to_rich(rows: Sequence[ArmRow]) -> RenderableType:
    """Two tables a phase, readable at 100 columns: results with verdicts, then equal budgets and costs."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return Text("no trials yet")
    digits, (result_head, cost_head) = _digits(rows), _heads(rows)
    parts: list[Any] = []
    for phase in dict.fromkeys(r.phase for r in rows):
        mine = [r for r in rows if r.phase == phase]
        results = Table(title=phase or None, title_justify="left", box=None, pad_edge=False)
        costs = Table(caption=budget_line(mine[0]), caption_justify="left", box=None, pad_edge=False)
        for i, head in enumerate(result_head):
            results.add_column(head, justify="right" if i == 4 else "left", overflow="fold")
        for i, head in enumerate(cost_head):
            costs.add_column(head, justify="right" if i else "left", overflow="fold")
        for row in mine:
            style = "green" if row.verdict in GOOD else "red" if row.verdict in BAD else ""
            *cells, verdict = result_cells(row, digits)
            results.add_row(*(Text(cell) for cell in cells), Text(verdict, style=style))
            costs.add_row(*(Text(cell) for cell in cost_cells(row)))
        parts += [results, Text(""), costs, Text("")]
    return Group(*parts)


def to_markdown(rows: Sequence[ArmRow]) -> str:
    """The same two tables as GitHub Markdown, one pair a phase."""
    if not rows:
        return "no trials yet\n"
    digits, (result_head, cost_head) = _digits(rows), _heads(rows)
    parts = []
    for phase in dict.fromkeys(r.phase for r in rows):
        mine = [r for r in rows if r.phase == phase]
        if phase:
            parts.append(f"**{phase}**\n")
        parts.append(_markdown_table(result_head, [result_cells(r, digits) for r in mine]))
        parts.append(_markdown_table(cost_head, [cost_cells(r) for r in mine]))
        parts.append(f"{budget_line(mine[0])}\n")
    return "\n".join(parts)


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |\n" for line in lines)
