"""What a person sees of a sweep: one live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fabric.console import PipedConsole
from fabric.job.units import human_count, human_seconds
from fabric.planning.cost import training_flops, training_tokens
from fabric.planning.study import Action, Study, Task
from fabric.planning.tasks import headline

EVERY = 0.5  # seconds between redraws


@dataclass
class _Arm:
    phase: str
    arm: str
    running: dict[str, float] = field(default_factory=dict)  # trial id -> share done
    best: float | None = None
    last: str = ""


class Screen:
    """Watches a study: counts, best losses, and how long is left, judged by FLOPs done so far."""

    def __init__(self, stream: TextIO | None = None, live: bool | None = None) -> None:
        self.console = PipedConsole(file=stream or sys.stderr)
        self.is_live = self.console.is_terminal if live is None else live
        self.study: Study | None = None
        self.started_at = time.monotonic()
        self._training_since: float | None = None
        self.arms: dict[tuple[str, str], _Arm] = {}
        self.flops_done = 0.0
        self._seen: dict[str, float] = {}
        self._live: Live | None = None
        self._drawn = 0.0
        self._stage = ""
        self._cut = self._is_gone = False

    def __enter__(self) -> Screen:
        if self.is_live:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._show(self._live.stop)
            self._live = None

    # -- what happens ------------------------------------------------------------------------------------------

    def attach(self, study: Study, slots: int) -> None:
        """Begin watching a study of which `slots` trials run at once."""
        self.study = study
        self.say(f"{study.job.name}: {slots} trial{'s' if slots > 1 else ''} at once")

    def preparing(self, stage: str, fraction: float) -> None:
        if stage != self._stage:
            self._stage = stage
            self.say(stage)
        self._draw()

    def started(self, task: Task) -> None:
        self._training_since = self._training_since or time.monotonic()
        if task.kind == "train":
            self._arm(task).running[task.trial.id] = 0.0
        self._draw()

    def reported(self, task: Task, row: Mapping[str, Any], action: Action) -> None:
        trial, arm = task.trial, self._arm(task)
        share = (row.get("tokens") or 0) / training_tokens(trial.spec)
        self.flops_done += max(0.0, share - self._seen.get(trial.id, 0.0)) * training_flops(trial.spec)
        self._seen[trial.id] = share
        loss = row.get("val_loss")
        if action == "continue":
            arm.running[trial.id] = share
        if loss is not None and (arm.best is None or loss < arm.best):
            arm.best = loss
        if action == "stop":
            reason = trial.decisions.get(int(row["tokens"]), {})
            cutoff, value = reason.get("cutoff"), reason.get("value")
            against = f"{_number(value)} against {_number(cutoff)}"
            self.say(f"{_name(task)} stopped at {human_count(row['tokens'])} tokens: val_loss {against}")
        self._draw()

    def ended(self, task: Task, error: str | None) -> None:
        if task.kind == "train":
            self._arm(task).running.pop(task.trial.id, None)
            if error:
                again = ", and is tried again" if task.trial.state == "waiting" else ""
                self.say(f"{_name(task)} failed{again}: {headline(error)}")
            elif task.trial.end == "finished":
                status = self.study.registry.record(task.trial).status() if self.study else None
                loss = self.study.registry.last_value(task.trial) if self.study else None
                why = (status.reason or {}).get("kind", "finished") if status else "finished"
                note = "" if why in ("finished", "completed") else f" ({why})"
                self.say(f"{_name(task)} finished{note}: val_loss {_number(loss)}   {self._left()}")
        self._draw(force=True)

    def interrupted(self) -> None:
        self._cut = True
        self.say("stopping; the same command will go on from here")

    def tick(self) -> None:
        self._draw()

    # -- how it looks --------------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """One plain line, above the live screen if there is one."""
        clock = human_seconds(time.monotonic() - self.started_at)
        text = Text(f"[{clock:>6}] {line}")
        self._show(lambda: (self._live.console if self._live else self.console).print(text, soft_wrap=True))

    def _show(self, show: Callable[[], object]) -> None:
        """Show something; when nobody looks any more (a closed terminal or pipe) the sweep goes on without."""
        if self._is_gone:
            return
        try:
            show()
        except OSError:
            self._is_gone = True

    def _arm(self, task: Task) -> _Arm:
        key = (task.trial.phase, task.trial.arm)
        return self.arms.setdefault(key, _Arm(*key))

    def _left(self) -> str:
        """How much is done and how long the known phases still take."""
        if self.study is None:
            return ""
        total = sum(training_flops(t.spec) for t in self.study.trials.values())
        ahead = sum(
            (1 - self._seen.get(t.id, 0.0)) * training_flops(t.spec)
            for t in self.study.trials.values()
            if t.state != "ended"
        )
        done = sum(t.state == "ended" for t in self.study.trials.values())
        elapsed = time.monotonic() - (self._training_since or self.started_at)
        text = f"{done}/{len(self.study.trials)} trials"
        if self.flops_done and total:
            text += f", {human_seconds(elapsed * ahead / self.flops_done)} left in the phases known"
        return text

    def _draw(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._live is None or self.study is None or (not force and now - self._drawn < EVERY):
            return
        self._drawn = now
        table = Table(box=None, pad_edge=False)
        for column in ("phase", "arm", "trials", "best val_loss", ""):
            table.add_column(column)
        for key, arm in list(self.arms.items())[-20:]:
            mine = [t for t in self.study.trials.values() if (t.phase, t.arm) == key]
            done = sum(t.state == "ended" for t in mine)
            bars = " ".join(_bar(share) for share in arm.running.values())
            table.add_row(arm.phase, arm.arm, f"{done}/{len(mine)}", _number(arm.best), bars)
        head = Text(
            f"{self.study.job.name}  {human_seconds(now - self.started_at)}  {self._left()}", style="bold"
        )
        if self._cut:
            head.append("  stopping…", style="yellow")
        live = self._live
        self._show(lambda: live.update(Group(head, table), refresh=True))


def _bar(share: float, width: int = 12) -> str:
    full = round(min(1.0, share) * width)
    return "█" * full + "░" * (width - full)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _name(task: Task) -> str:
    trial = task.trial
    point = f" {trial.point}" if trial.point and trial.role == "tuning" else ""
    return f"{trial.phase}/{trial.arm}{point} seed {trial.seed}"
