"""Settings that are allowed and will not do what they seem to: sentences for the plan and the sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fabric.data import DataConfig
from fabric.job.load import Configuration, Job
from fabric.job.schema import SearchConfig
from fabric.job.start import vocabulary_warning
from fabric.train.calendar import calendar
from models import n_params


def advice(job: Job, configuration: Configuration) -> list[str]:
    """What of an arm's training and evaluation section has no effect, or swallows the run."""
    train, evaluate, seq_len = configuration.train, configuration.evaluate, configuration.data.seq_len
    n_steps = train.n_steps(seq_len, n_params(configuration.model))
    n_evaluations = len(calendar(n_steps, train.batch_size * seq_len, evaluate).scheduled)
    found = []
    warmup = train.schedule.warmup_steps(n_steps)
    if warmup >= n_steps > 1:
        found.append(f"the warm-up of {warmup} steps takes the whole run of {n_steps} steps")
    if train.early_stop is not None and train.early_stop.patience >= n_evaluations:
        found.append(
            f"early_stop can end nothing: its patience is {train.early_stop.patience}, and a run is evaluated "
            f"{n_evaluations} times"
        )
    if evaluate.every_tokens is not None:
        if job.document.has(("base", "evaluate", "times")):
            found.append("evaluate.times is not used: evaluate.every_tokens is given")
        if evaluate.every_tokens >= n_steps * train.batch_size * seq_len:
            found.append("evaluate.every_tokens is the whole run: it is evaluated at its end only")
    return found


def search_advice(search: SearchConfig, n_points: int) -> list[str]:
    """A scheduler that has nothing to compare at `n_points` rates, and a competition that stops nothing."""
    stops = search.scheduler.kind != "fifo"
    found = []
    if stops and n_points == 1 and search.compete == "rates":
        found.append(
            f"scheduler {search.scheduler.kind} has nothing to compare: there is no nuisance axis, and "
            "search.compete is rates"
        )
    if not stops and search.compete == "arms":
        found.append(
            f"compete: arms has no effect with scheduler {search.scheduler.kind}, which stops nothing"
        )
    return found


def tokenizer_advice(
    configured: Iterable[tuple[str, Configuration]], data_key: Callable[[DataConfig], str], cache: Path
) -> list[str]:
    """Arms (by name) that start from weights of another tokenizer; asked anew each time, as some train theirs first."""
    arms: dict[str, list[str]] = {}
    for name, configuration in configured:
        if configuration.start is not None:
            key = data_key(configuration.data)
            if warning := vocabulary_warning(configuration.start, configuration.data, key, cache):
                arms.setdefault(warning, []).append(name)
    return [f"{', '.join(names)}: {warning}" for warning, names in arms.items()]
