"""Where a training step's time goes: a table by operator, a flame graph, and its folded stacks."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fabric.bench.flame import folded, merged, svg, tree
from fabric.bench.training import N_FIRST, Training, made

ROWS_SHOWN = 10


def profiled(folder: str, name: str, steps: int, **task: Any) -> dict[str, Any]:
    """Profile `steps` warm steps of a side into `<folder>/<name>.{csv,svg,folded}`.

    Returns the files and the operators that take most; milliseconds and calls are of one step.
    """
    import torch

    training = Training(**task)
    side = made(training)
    batches = [training.rows_BT1(i) for i in range(N_FIRST + steps)]
    for rows_BT1 in batches[:N_FIRST]:
        side.step(rows_BT1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for rows_BT1 in batches[N_FIRST:]:
            side.step(rows_BT1)
    rows = _table(profiler, steps)
    stacks = merged((names, cost / steps) for names, cost in _stacks(profiler.events()))
    title = f"{name}: one training step, {sum(stacks.values()) / 1e3:.1f} ms (mean of {steps})"
    files = {suffix: Path(folder, f"{name}.{suffix}") for suffix in ("csv", "svg", "folded")}
    Path(folder).mkdir(parents=True, exist_ok=True)
    with files["csv"].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    files["svg"].write_text(svg(tree(stacks, root="step"), title))
    files["folded"].write_text(folded(stacks))
    return {"files": [str(path) for path in files.values()], "rows": rows[:ROWS_SHOWN]}


def _table(profiler: Any, steps: int) -> list[dict[str, Any]]:
    """Every operator, the one that takes most first."""
    found = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in found)
    return [
        {
            "operator": e.key,
            "self_ms": round(e.self_cpu_time_total / steps / 1e3, 4),
            "calls": round(e.count / steps, 2),
            "share": round(e.self_cpu_time_total / total, 4),
        }
        for e in found
    ]


def _stacks(events: Any) -> Iterator[tuple[tuple[str, ...], float]]:
    """Each event's names from the outermost on, with the microseconds it took itself."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque(
        ((e.name,), e) for e in events if e.cpu_parent is None
    )
    while waiting:
        names, event = waiting.popleft()  # in order of time: so they stand in the picture
        yield names, max(0.0, event.self_cpu_time_total)
        waiting += [((*names, child.name), child) for child in event.cpu_children]
