"""How plans, results and findings look on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fabric.console import PipedConsole
from fabric.job.units import human_bytes, human_count, human_seconds
from fabric.printing_workers import print_prediction, print_workers, table_of
from fabric.store import local

if TYPE_CHECKING:
    from fabric.comparing import Compared
    from fabric.doctoring import Finding
    from fabric.evaluate.harness import Harnessed
    from fabric.measuring import Measured
    from fabric.planning.report import Plan
    from fabric.results import Results, TrialStatus

MOST_ROWS = 60


def print_json(value: Any) -> None:
    """Plain JSON on stdout, nothing else; NaN, which JSON does not know, as null."""
    from fabric.store import dump_json

    print(dump_json(value, indent=1).decode())


def _console() -> Console:
    """A console that takes names and messages as they are (`search.axes[0]` is no markup) and never cuts a line."""
    width = None if sys.stdout.isatty() else 200
    return PipedConsole(markup=False, highlight=False, width=width, soft_wrap=True)


def print_plan(plan: Plan) -> None:
    """Trials, arms and estimates of a plan."""
    console = _console()
    scale = f" at scale {plan.scale}" if plan.scale else ""
    console.print(f"{plan.job}{scale}, study {plan.study}", style="bold")
    trials = table_of("phase", "arm", "role", "point", "seed", "trial", "tokens", "state")
    for row in plan.trials[:MOST_ROWS]:
        tokens = human_count(row.tokens)
        trials.add_row(row.phase, row.arm, row.role, row.point, str(row.seed), row.id, tokens, row.state)
    console.print(trials)
    if len(plan.trials) > MOST_ROWS:
        console.print(f"… and {len(plan.trials) - MOST_ROWS} more (--json lists all)")
    for later in plan.later:
        condition = " and ".join(f"{path} is {_yaml(value)}" for path, value in later.when.items())
        condition = f" (if {condition})" if condition else ""
        console.print(
            f"later: {later.phase}{condition}, {later.n_arms} arms on what is adopted, "
            f"at most {later.n_trials} trials"
        )
    arms = table_of("phase", "arm", "parameters", "FLOPs/token", "state", "peak memory", "mismatch")
    for arm in plan.arms:
        mismatch = "" if arm.mismatch is None else f"{arm.mismatch:+.2%}"
        arms.add_row(
            arm.phase, arm.arm, f"{arm.n_params:,}", human_count(arm.flops_per_token),
            human_bytes(arm.state_bytes), human_bytes(arm.peak_memory_bytes), mismatch,
        )  # fmt: skip
    console.print(arms)
    if plan.auto:
        console.print(f"auto: {'; '.join(_became(name, arms) for name, arms in plan.auto.items())}")
    for start in plan.starts:
        console.print(f"start: {start}")
    for warning in plan.warnings:
        console.print(f"warning: {warning}", style="yellow")
    n_new = sum(not r.state.startswith(("finished", "duplicate", "stopped")) for r in plan.trials)
    console.print(f"{n_new} trials to train, {plan.slots} at once (limit: {plan.limit})")
    speed = f"{human_count(plan.speed)}FLOP/s a trial, from {plan.speed_from}"
    bound = "at most about" if plan.later else "about"
    console.print(f"{bound} {human_seconds(plan.eta_seconds)} for {human_count(plan.flops)}FLOPs ({speed})")
    console.print(f"records and checkpoints take {human_bytes(plan.disk_bytes)} of disk")
    detectable = (
        "unknown (no earlier runs of this size)" if plan.detectable is None else f"{plan.detectable:.4f} nats"
    )
    console.print(f"smallest difference this plan could detect: {detectable}")
    for prediction in plan.predictions:
        print_prediction(prediction, console)


def _became(name: str, arms: dict[str, list[str]]) -> str:
    """`precision bf16`, or `precision bf16 (main/a), fp32 (main/b)` where arms differ."""
    if len(arms) == 1:
        return f"{name} {next(iter(arms))}"
    each = (f"{value} ({', '.join(names)})" for value, names in arms.items())
    return f"{name} {', '.join(each)}"


def print_results(found: Results, console: Console | None = None) -> None:
    """The table of a study, what each phase decided, and what was adopted in the end."""
    from rich.text import Text

    from fabric.analysis.terminal import to_rich

    console = console or PipedConsole()
    scale = f", scale {found.scale}" if found.scale else ""
    console.print(Text.assemble((found.job, "bold"), f"{scale}, study {found.study}"))
    console.print(to_rich(found.arms))
    for decision in found.decisions:
        line = Text.assemble(
            f"{decision['phase']}: ", (decision["winner"], "bold"), f" ({decision['reason']})"
        )
        if others := [arm for arm in decision["kept"] if arm != decision["winner"]]:
            line.append(f"; {' and '.join(others)} {'goes' if len(others) == 1 else 'go'} on too")
        console.print(line, soft_wrap=True)
    if found.workers:
        print_workers(found.workers, console)
    for sentence in (*_summary(found), *(found.scaling.lines() if found.scaling else ())):
        console.print(Text(sentence), soft_wrap=True)
    for warning in found.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)


def _summary(found: Results) -> list[str]:
    """The last phase's winner and the adopted configuration, a line each."""
    from fabric.analysis.rates import human_rate

    best = found.winner
    if best is None:
        return []
    if best.result is None:
        return [f"no winner: no run of phase {best.phase} came to its end with a finite loss"]
    loss = f", {best.metric} {best.result.mean:.4f} over {best.n} seeds" if best.result else ""
    test = best.means.get("test_loss")
    loss += "" if test is None else f", test_loss {test:.4f}"
    values = [f"{path}={_yaml(value)}" for path, value in found.adopted.items()]
    rate = [] if best.lr is None else [f"learning rate {human_rate(best.lr)}"]
    return [f"winner: {best.arm} (phase {best.phase}{loss})", f"adopted: {', '.join([*values, *rate])}"]


def _yaml(value: Any) -> str:
    """A value on one line, as YAML writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_yaml(v)}" for k, v in value.items()) + "}"
    return "null" if value is None else str(value)


def results_json(found: Results) -> str:
    """A study's table and decisions as JSON."""
    from fabric.analysis.render import to_json

    head: dict[str, Any] = {
        "job": found.job,
        "study": found.study,
        "scale": found.scale,
        "decisions": found.decisions,
    }
    head |= {"adopted": found.adopted, "warnings": found.warnings}
    head["workers"] = [asdict(row) for row in found.workers]
    head["scaling"] = found.scaling.to_json() if found.scaling else None
    return json.dumps({**head, "arms": json.loads(to_json(found.arms))}, indent=1)


def write_results(found: Results, *, csv: Path | None, parquet: Path | None, plot: Path | None) -> None:
    """The table into files, in folders that are made; the picture of a study that fits a scaling law is the law.

    Raises ValueError for a picture whose ending is no format that can be drawn.
    """
    from fabric.analysis import render
    from fabric.analysis.plot import plot as draw
    from fabric.analysis.plot import plot_scaling

    if plot:
        _check_ending(plot)
    for path in (csv, parquet, plot):
        if path:
            local(path, "the file").parent.mkdir(parents=True, exist_ok=True)
    if csv:
        render.to_csv(found.arms, csv)
    if parquet:
        render.to_parquet(found.arms, parquet)
    if plot and found.scaling:
        plot_scaling(found.scaling, plot)
    elif plot:
        draw(found.arms, plot)


def _check_ending(picture: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if picture.suffix.lower().removeprefix(".") not in known:
        given = f"ends in {picture.suffix!r}" if picture.suffix else "has no ending"
        raise ValueError(f"--plot {picture}: {given}; allowed: {', '.join('.' + k for k in known)}")


def print_status(found: list[TrialStatus]) -> None:
    """Every trial's state."""
    table = table_of("trial", "state", "step", "attempts", "val_loss", "why")
    for s in found:
        loss = "" if s.val_loss is None else f"{s.val_loss:.4f}"
        table.add_row(s.id, s.state, str(s.step), str(s.attempts), loss, s.reason)
    console = _console()
    console.print(table)
    states = [s.state for s in found]
    console.print(", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """A mapping, one line a key; nested mappings indented."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            print(f"{key}:")
            for inner, item in value.items():
                print(f"  {inner:24} {item}")
        elif not isinstance(value, list):
            print(f"{key:26} {value:.6g}" if isinstance(value, float) else f"{key:26} {value}")


def print_parts(found: Mapping[str, list[tuple[str, str]]]) -> None:
    """Parts by family."""
    for family, parts in found.items():
        print(f"{family}:")
        for kind, about in parts:
            print(f"  {kind:14} {about}")


def print_findings(found: list[Finding]) -> None:
    """What the doctor saw, errors last."""
    order = {"ok": 0, "note": 1, "error": 2}
    for finding in sorted(found, key=lambda f: order[f.level]):
        fix = f"  ({finding.fix})" if finding.fix else ""
        print(f"{finding.level:6} {finding.what}{fix}")


def print_bench(found: Mapping[str, Any]) -> None:
    """A bench's figures with their targets, each side's median and spread, and where they were measured."""
    console = PipedConsole(width=None if sys.stdout.isatty() else 200)
    console.print(f"[bold]{found['bench']}[/bold]: {found['about']}")
    if found["quick"]:
        console.print("[yellow]quick: the smallest size, the figures say nothing[/yellow]")
    table = table_of("figure", "value", "target", "met", "side", "median", "min", "max", "n")
    for name, figure in found["figures"].items():
        met = {True: "yes", False: "[red]no[/red]", None: ""}[figure.get("met")]
        head = [name, f"{figure['value']:.4g} {figure['unit']}", figure.get("target", ""), met]
        if not figure["sides"]:
            table.add_row(*head)
        for label, side in figure["sides"].items():
            spread = [f"{side[k]:.4g}" for k in ("median", "min", "max")]
            table.add_row(*head, label, *spread, str(side["n"]))
            head = [""] * len(head)
    if found["figures"]:
        console.print(table)
    for name, figure in found["figures"].items():
        if "note" in figure:
            console.print(f"{name}: {figure['note']}")
    for label, rows in found.get("profiles", {}).items():
        console.print(f"[bold]{label}[/bold], self time a step")
        for row in rows:
            cost = f"{row['self_ms']:9.2f} ms {row['share']:6.1%} {row['calls']:6.0f} calls"
            console.print(f"  {cost}  {row['operator']}", highlight=False, markup=False)
    for path in found.get("files", []):
        console.print(path, highlight=False, markup=False, soft_wrap=True)
    machine = found["machine"]
    where = f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB"
    console.print(f"{where}; threads: {found['threads']}; {found['versions']}", highlight=False)


def print_measured(found: list[list[Measured]]) -> None:
    """Scores of targets on tasks with their intervals; what a guesser gets too says so."""
    console = _console()
    many = ["target"] if len(found) > 1 else []
    table = table_of(*many, "task", "metric", "score", "95 % interval", "n", "chance", "")
    for measured in (m for of_target in found for m in of_target):
        for name, score in measured.scores.items():
            interval = "" if score.low is None else f"{score.low:.4f} to {score.high:.4f}"
            chance = "" if score.chance is None else f"{score.chance:.3f}"
            remark = "no better than chance" if score.is_chance else ""
            whose = [measured.target] if many else []
            table.add_row(
                *whose, measured.task, name, f"{score.value:.4f}", interval, str(score.n), chance, remark
            )
    console.print(table)
    for measured in (m for of_target in found for m in of_target):
        for remark in measured.remarks:
            owner = f"{measured.target}, " if many else ""
            console.print(f"{owner}{measured.task}: {remark}", markup=False, highlight=False)


def print_harnessed(found: list[Harnessed]) -> None:
    """Scores of lm-evaluation-harness with their standard errors; what a guesser gets too says so."""
    from fabric.evaluate.harness import SHARES

    console = _console()
    table = table_of("target", "task", "version", "metric", "score", "standard error", "n", "chance", "")
    for h in found:
        for name, value in h.metrics.items():
            error = h.standard_errors.get(name)
            spread = "" if error is None else f"{error:.4f}"
            chance = f"{h.chance[0]:.3f}" if h.chance and name.split(",")[0] in SHARES else ""
            remark = "no better than chance" if h.is_chance(name) else ""
            row = h.target, h.task, h.version, name, f"{value:.4f}", spread, str(h.n_items), chance, remark
            table.add_row(*row)
    console.print(table)


def print_compared(found: list[Compared]) -> None:
    """B against A, metric by metric; p of a task's headline is adjusted for all headlines."""
    console = _console()
    table = table_of("task", "metric", "A", "B", "B - A", "95 % interval", "relative", "n", "p", "verdict")
    for c in found:
        d = c.difference
        relative = "" if c.relative is None else f"{c.relative:+.1%}"
        p = f"{d.p:.3g}" if c.p_holm is None else f"{c.p_holm:.3g} (Holm)"
        values = f"{c.a:.4f}", f"{c.b:.4f}", f"{d.value:+.4f}", f"{d.low:+.4f} to {d.high:+.4f}", relative
        table.add_row(c.task, c.metric, *values, str(d.n), p, c.verdict)
    console.print(table)
