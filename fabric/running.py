"""`fabric.run`: one arm, one seed, in this process (or in torchrun's), without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.data import data_key, prepare
from fabric.job.content import naming_corpus
from fabric.job.document import JobError
from fabric.job.load import Job, load_job
from fabric.job.units import human_count
from fabric.planning.expand import Arm, arms_of_phase, arms_of_search, nuisance_points
from fabric.planning.match import matched_configuration
from fabric.planning.trial import RanksConfig, TrialSpec
from fabric.runtime.signals import interruptible, noted
from fabric.store import Store, Url, located, share
from fabric.sweeping import JobSource, cache_root, out_root
from fabric.train.directive import PREEMPTED, Continue, Directive
from models.parts import meant

if TYPE_CHECKING:
    from fabric.store import TrialRecord
    from fabric.train.group import Group

SHOWN_WITHIN = 10.0  # seconds until a shared folder shows on one node what another wrote


def run(
    job: JobSource,
    *,
    arm: str | None = None,
    seed: int = 0,
    scale: str | None = None,
    overrides: Iterable[str] = (),
    out: str | Path | Url = "runs",
    on_row: Callable[[Mapping[str, Any]], None] = lambda row: None,
    group: Group | None = None,
) -> dict[str, Any]:
    """Train one arm of a job with one seed, inline, and return its final metrics with its `id` and `state`.

    Every rank of a `group` calls it alike: then the job's engine keeps them together. Without, it is one process,
    whatever `resources` says: the numbers are the same (5e-6).

    `arm` is an arm's name (of any phase, on the job's base); None is the base itself. The record goes to the same
    store as a sweep's, so a later sweep takes the trial over. Raises JobError for an unknown arm, and
    KeyboardInterrupt on Ctrl-C or SIGTERM, after the step's checkpoint; the same call then goes on where it stopped.
    """
    with interruptible():
        loaded = load_job(job, scale, overrides, cache_root(out))
        with naming_corpus(loaded):
            return _run(loaded, arm, seed, out, on_row, group)


def _run(
    loaded: Job,
    arm: str | None,
    seed: int,
    out: str | Path | Url,
    on_row: Callable[[Mapping[str, Any]], None],
    group: Group | None,
) -> dict[str, Any]:
    from fabric.train.group import ALONE

    ranks = RanksConfig()
    if group is not None:
        ranks = loaded.config.resources.ranks.model_copy(update={"workers": group.world})
    group = group or ALONE
    if not 0 <= seed < 2**63:
        raise JobError([f"seed {seed}: allowed are 0 to 2**63 - 1"])
    chosen = loaded.configure(_arm(loaded, arm).overrides)
    configuration, _ = matched_configuration(loaded, chosen, loaded.configure())
    spec = TrialSpec(
        model=configuration.model,
        data=configuration.data,
        data_key=data_key(configuration.data, cache_root(out)),
        train=configuration.train,
        evaluate=configuration.evaluate,
        seed=seed,
        weights=None if configuration.start is None else configuration.start.key,
        threads=loaded.threads,
        device=loaded.device,
        ranks=ranks,
    )
    record = Store(out_root(loaded, out)).trial(spec.id)
    problem: Exception | None = None
    if group.leads:
        try:
            prepare(spec.data, cache_root(out))
            record.write_spec(spec.model_dump(mode="json"))
            for name in spec.cached:
                share(located(out), cache_root(out), name)
        except Exception as error:
            problem = error
    said = group.told(None if problem is None else str(problem))
    if said is not None:
        raise problem or ValueError(said)
    _must_share(record, group, out)
    cache = prepare(spec.data, cache_root(out))

    from fabric.train.loop import run as train
    from fabric.train.start import weights_file

    def report(row: Mapping[str, Any]) -> Directive:
        on_row(row)
        return Continue()

    weights = None if spec.weights is None else weights_file(cache_root(out), spec.weights)
    with noted() as leaving:
        outcome = train(spec, record, cache, report=report, weights=weights, group=group, leaving=leaving)
    if outcome.reason.get("kind") == PREEMPTED:
        raise KeyboardInterrupt
    return {"id": spec.id, "state": outcome.state, "reason": outcome.reason, **(outcome.final or {})}


def _must_share(record: TrialRecord, group: Group, out: str | Path | Url) -> None:
    """Raises ValueError, on every rank, where one does not see what rank 0 has just written; a network's file system
    may show it late."""
    deadline = time.monotonic() + SHOWN_WITHIN
    while not (is_seen := record.is_there()) and time.monotonic() < deadline:
        time.sleep(0.5)
    if blind := [rank for rank, sees in enumerate(group.gathered(is_seen)) if not sees]:
        raise ValueError(
            f"--out {out}: rank {', '.join(map(str, blind))} does not see what rank 0 writes there; give a folder "
            "that all nodes share, or an s3:// URL"
        )


def _arm(job: Job, name: str | None) -> Arm:
    if name is None:
        return Arm("base")
    search = job.config.search
    if search.mode == "phases":
        arms = [a for i, p in enumerate(search.phases) for a in arms_of_phase(job, i, p)]
    else:
        arms = arms_of_search(job)
    arms += nuisance_points(job)
    by_name = {a.name: a for a in reversed(arms) if a.name}
    if name not in by_name:
        hint = meant(name, by_name)
        raise JobError([f"--arm {name}: no such arm{hint} (allowed: {', '.join(sorted(by_name))})"])
    return by_name[name]


def one_line(row: Mapping[str, Any]) -> str:
    """A reported row as a line of text."""
    parts = [f"step {row['step']}", f"{human_count(row['tokens'])} tokens"]
    for key in ("train_loss", "val_loss"):
        if row.get(key) is not None:
            parts.append(f"{key} {row[key]:.4f}")
    return "  ".join(parts)
