"""The tables for eyes: rich, as wide as the terminal lets them be, and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fabric.analysis.decide import MIN_SEEDS
from fabric.analysis.rates import human_rate
from fabric.analysis.table import BUDGETS, ArmRow
from fabric.job.metrics import metric_info
from fabric.job.units import human_bytes, human_count, human_seconds

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

GOOD, BAD = ("better", "adopted for cost"), ("worse", "diverged", "failed")
GAP = 2  # blanks between columns
SHORT = {
    "undecided, n too small": "undecided",
    "baseline, n too small": "baseline",
    "adopted for cost": "for cost",
}


class Column(NamedTuple):
    """A column's head (its lines) and cells; `same` is what the caption says when all cells agree."""

    head: str
    cells: list[str]
    same: str = ""
    right: bool = True

    @property
    def width(self) -> int:
        return max(len(line) for cell in (self.head, *self.cells) for line in cell.split("\n"))


def arm_names(arms: Sequence[str]) -> Column:
    """The arms; where all are `path=value`, joined by " + ", of the same paths, the paths move into the head."""
    split = [[part.split("=", 1) for part in arm.split(" + ")] for arm in arms]
    if all(len(part) == 2 for parts in split for part in parts):
        paths = {tuple(path for path, _ in parts) for parts in split}
        if len(paths) == 1:
            head = " +\n".join(paths.pop())
            return Column(head, [" + ".join(value for _, value in parts) for parts in split], right=False)
    return Column("arm", list(arms), right=False)


def _number(value: float | None, digits: int, sign: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _digits(rows: Sequence[ArmRow]) -> int:
    info = metric_info(rows[0].metric) if rows else None
    return 4 if info is None or info.unit != "tokens/s" else 0


def _n(row: ArmRow) -> str:
    """How many runs count, with those that do not."""
    beside = {"censored": "stopped", "diverged": "diverged", "failed": "failed", "running": "running"}
    return " + ".join([str(row.n), *(f"{n} {beside[o]}" for o, n in row.counts.items() if o in beside)])


def _mean(row: ArmRow, digits: int) -> str:
    if row.result is None:
        return ""
    text = _number(row.result.mean, digits)
    if row.n >= MIN_SEEDS and row.result.high is not None:
        text += f" ± {row.result.high - row.result.mean:.{digits}f}"
    return text


def _difference(row: ArmRow, digits: int, ends: bool) -> str:
    """The paired difference with its interval, as [low, high] or as ± half of it (it is symmetric)."""
    c = row.comparison
    if c is None:
        return ""
    text = _number(c.diff, digits, sign=True)
    if c.low is None or c.high is None:
        return text
    if ends:
        return f"{text} [{_number(c.low, digits, True)}, {_number(c.high, digits, True)}]"
    return f"{text} ± {(c.high - c.low) / 2:.{digits}f}"


def _p(row: ArmRow) -> str:
    p = row.comparison.p_holm if row.comparison else None
    return "" if p is None else ("<0.001" if p < 0.001 else f"{p:.3f}")


def _verdict(row: ArmRow) -> str:
    return row.verdict + (", n too small" if row.is_baseline and 0 < row.n < MIN_SEEDS else "")


def result_layouts(rows: Sequence[ArmRow]) -> list[list[Column]]:
    """The result's columns, the widest layout first; every later one says a little less."""
    digits = _digits(rows)
    arm, n = arm_names([r.arm for r in rows]), Column("n", [_n(r) for r in rows], right=False)
    mean = Column(rows[0].metric, [_mean(r, digits) for r in rows], right=False)
    wide = Column("difference [interval]", [_difference(r, digits, True) for r in rows], right=False)
    slim = Column("difference", [_difference(r, digits, False) for r in rows], right=False)
    p, verdict = (
        Column("p", [_p(r) for r in rows]),
        Column("verdict", [_verdict(r) for r in rows], right=False),
    )
    word = Column("verdict", [SHORT.get(v, v) for v in verdict.cells], right=False)
    bare = Column(mean.head, [c.split(" ")[0] for c in mean.cells], right=False)
    layouts = [
        [arm, n, mean, wide, p, verdict],
        [arm, n, mean, slim, p, verdict],
        [arm, n, mean, slim, verdict],
        [arm, n, mean, slim, word],
        [arm, n, bare, slim, word],
        [arm, n, slim, word],
    ]
    return [[c for c in columns if set(c.cells) != {""}] for columns in layouts]


def cost_columns(rows: Sequence[ArmRow]) -> list[Column]:
    """Loss at equal tokens, FLOPs and seconds, learning rate, parameters, state, speed."""
    rates = ["" if r.lr is None else human_rate(r.lr) for r in rows]
    params = ["" if r.n_params is None else human_count(r.n_params) for r in rows]
    states = [_or_blank(r.means.get("state_bytes_per_token"), human_bytes) for r in rows]
    return [
        arm_names([r.arm for r in rows]),
        *(Column(h, [_number(r.equal[b], 4) for r in rows]) for h, b in zip(EQUAL, BUDGETS)),
        Column("rate", rates, "rate {}"),
        Column("params", params, "{} parameters"),
        Column("state/token", states, "{} of state a token"),
        Column("tokens/s", [_or_blank(r.means.get("tokens_per_second"), human_count) for r in rows]),
    ]


EQUAL = ("= tokens", "= FLOPs", "= time")


def _or_blank(value: float | None, shown: Any) -> str:
    return "" if value is None else shown(value)


def cost_layouts(rows: Sequence[ArmRow]) -> tuple[list[list[Column]], str]:
    """The cost table's columns, widest first, and the caption: what the budgets are, and what all arms share."""
    shared, columns = [], []
    for column in cost_columns(rows):
        values = set(column.cells)
        if column.same and len(rows) > 1 and len(values) == 1 and values != {""}:
            shared.append(column.same.format(values.pop()))
        elif values != {""}:
            columns.append(column)
    layouts = [columns]
    for dropped in ("params", "rate", "state/token", "tokens/s"):
        layouts.append([c for c in layouts[-1] if c.head != dropped])
    same = f"; in every arm: {', '.join(shared)}" if shared else ""
    return layouts, budget_line(rows[0]) + same


def budget_line(row: ArmRow) -> str:
    """What the equal-budget columns of a phase stand for."""
    shown = {"tokens": lambda v: human_count(v) + " tokens", "flops": lambda v: human_count(v) + "FLOPs"}
    shown["seconds"] = human_seconds
    known = [shown[b](v) for b in BUDGETS if (v := row.budget[b]) is not None]
    return "validation loss at " + ", ".join(known) if known else "no histories"


def fitted(layouts: Sequence[list[Column]], width: int) -> list[Column]:
    """The first layout that fits; when none does, the last with the arms' names cut in the middle."""
    for columns in layouts:
        if sum(c.width + GAP for c in columns) - GAP <= width:
            return columns
    arm, *others = layouts[-1]
    room = max(8, width - sum(c.width + GAP for c in others))
    return [Column(_cut(arm.head, room), [_cut(c, room) for c in arm.cells], right=False), *others]


def _cut(text: str, room: int) -> str:
    if max(map(len, text.split("\n"))) <= room:
        return text
    text = text.replace("\n", " ")
    head = (room - 1) // 2
    return text if len(text) <= room else f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"


class Tables:
    """Two tables a phase: results with verdicts, then equal budgets and costs. No name is ever folded."""

    def __init__(self, rows: Sequence[ArmRow]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        if not self.rows:
            yield Text("no trials yet")
        for phase in dict.fromkeys(r.phase for r in self.rows):
            mine = [r for r in self.rows if r.phase == phase]
            yield Text(phase, style="bold")
            yield self._table(fitted(result_layouts(mine), options.max_width), mine)
            yield Text("")
            layouts, caption = cost_layouts(mine)
            yield self._table(fitted(layouts, options.max_width), mine)
            yield Text(caption, style="italic")
            yield Text("")

    def _table(self, columns: Sequence[Column], rows: Sequence[ArmRow]) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(Text(column.head), justify="right" if column.right else "left", no_wrap=True)
        for i, row in enumerate(rows):
            verdict = "green" if row.verdict in GOOD else "red" if row.verdict in BAD else ""
            styles = {"verdict": verdict, columns[0].head: "bold" if row.winner else ""}
            table.add_row(*(Text(c.cells[i], style=styles.get(c.head, "")) for c in columns))
        return table


def to_rich(rows: Sequence[ArmRow]) -> Tables:
    """Something `rich.Console.print` shows in the width it has."""
    return Tables(rows)


def to_markdown(rows: Sequence[ArmRow]) -> str:
    """The same two tables as GitHub Markdown, one pair a phase; the winner's name is bold."""
    if not rows:
        return "no trials yet\n"
    parts = []
    for phase in dict.fromkeys(r.phase for r in rows):
        mine = [r for r in rows if r.phase == phase]
        if phase:
            parts.append(f"**{phase}**\n")
        layouts, caption = cost_layouts(mine)
        parts += [_markdown(columns, mine) for columns in (result_layouts(mine)[0], layouts[0])]
        parts.append(f"{caption}\n")
    return "\n".join(parts)


def _markdown(columns: Sequence[Column], rows: Sequence[ArmRow]) -> str:
    body = [[c.cells[i] for c in columns] for i in range(len(rows))]
    for cells, row in zip(body, rows):
        cells[0] = f"**{cells[0]}**" if row.winner else cells[0]
    head = [c.head.replace("\n", " ") for c in columns]
    lines = [head, ["---:" if c.right else "---" for c in columns], *body]
    return "".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |\n" for line in lines)
