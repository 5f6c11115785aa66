"""Settings that are allowed and will not do what they seem to: sentences for the plan and the sweep."""

from __future__ import annotations

from fabric.job.load import Configuration, Job
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
