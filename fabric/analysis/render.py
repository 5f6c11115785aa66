"""The table for machines: CSV, JSON, Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fabric.analysis.table import BUDGETS, ArmRow


def flat(row: ArmRow) -> dict[str, Any]:
    """One row as one level of keys: what the files hold. Numbers unrounded, None for what is not known."""
    c, s = row.comparison, row.result
    out: dict[str, Any] = {
        "phase": row.phase,
        "arm": row.arm,
        "baseline": row.is_baseline,
        "metric": row.metric,
        "verdict": row.verdict,
        "winner": row.winner,
        "goes_on": row.goes_on,
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
    out["n_tuning_censored"] = row.tuning_counts.get("censored", 0)
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
