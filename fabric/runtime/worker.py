"""What runs inside a Tune actor: one task (train a trial, or read its test split) a call. Preloaded by Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Preloaded with torch, so that a first step waits for no import.
import fabric.evaluate.final
import fabric.train.loop
import models.decoder  # noqa: F401
from fabric.data import TokenCache
from fabric.planning.trial import TrialSpec
from fabric.runtime.connect import ROOT, SourcesDifferError
from fabric.sources import source_hash
from fabric.store import Store, cache_of, fetch
from fabric.train.directive import PREEMPTED, Continue, Directive, Leaving, PreemptedError, Report, never
from fabric.train.group import ALONE, Group
from fabric.train.start import weights_file

if TYPE_CHECKING:
    from fabric.data.stream import Read

_CACHES: dict[str, TokenCache] = {}


def fabric_trial(config: dict[str, Any]) -> None:
    """The Tune trainable, idempotent: it takes a new attempt, goes on from our last checkpoint, and reports rows.

    Tune stops it by raising SystemExit inside `tune.report`; everything final is on disk before that.
    """
    # Also where the cluster's environment was not ours to set: a slow end must not cost the next trial its actor.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    perform_on_ray(config["task"], report_to_tune)


def perform_on_ray(task: Mapping[str, Any], report: Report) -> None:
    """Do a task in this actor, or in its worker group."""
    same_sources(task["source_hash"])
    os.environ["RAYON_NUM_THREADS"] = str(task["threads"])
    if task["in_group"]:
        from fabric.runtime.ranks import perform_in_group

        perform_in_group(task, report)
    else:
        from fabric.runtime.notices import here, is_leaving

        node = (here(),)
        perform(task, report, leaving=lambda: is_leaving(node), with_ray=True)


def same_sources(driver: str) -> None:
    """Raise SourcesDifferError where this process runs other sources than the driver, whose hash is given."""
    if driver != _own_hash():
        raise SourcesDifferError(
            f"a worker runs other sources than the driver (they are at {ROOT} there): were they edited while the "
            "sweep ran? Run the same command again, on a cluster with the same version"
        )


def report_to_tune(row: Mapping[str, Any]) -> Directive:
    """A row's plain values to Tune, which ends the trial from in here when it is to stop."""
    from ray import tune

    tune.report({k: v for k, v in row.items() if isinstance(v, int | float | str) or v is None})
    return Continue()


def perform(
    task: Mapping[str, Any],
    report: Report,
    group: Group = ALONE,
    *,
    leaving: Leaving = never,
    with_ray: bool = False,
) -> None:
    """Do a task with any `report` function, on every rank of a group; the inline runner uses it without Ray.

    `with_ray`: a stream is read by Ray Data, not in this process. Raises PreemptedError when it was left because of
    `leaving`: then its checkpoint is on disk.
    """
    store = Store(task["store"])
    record = store.trial(task["trial"], task["numerics"])
    if record.spec() is None:
        raise RuntimeError(
            f"{record.prefix}/trial.json is missing below {task['store']}: is the folder shared?"
        )
    # As this run wants it measured; the record's own copy is of the run that first planned the trial.
    spec = TrialSpec.model_validate_json(task["spec"])
    folder = cache_folder(store, task["cache"], spec)
    cache = token_cache(folder, spec.data_key)
    if task["kind"] == "test":
        from fabric.evaluate.test import read_test_split

        if group.leads:
            report(read_test_split(spec, record, cache))
        return
    read: Read | None = None
    if with_ray and spec.data.stream is not None:
        from fabric.runtime.stream import read_with_ray

        read = read_with_ray
    outcome = fabric.train.loop.run(
        spec,
        record,
        cache,
        report=report,
        rung_tokens=task["rungs"],
        micro_batch_size=task["micro_batch_size"],
        weights=None if spec.weights is None else weights_file(folder, spec.weights),
        group=group,
        leaving=leaving,
        read=read,
        provenance={"invocation": task["invocation"], "source_hash": task["source_hash"]},
    )
    if outcome.reason.get("kind") == PREEMPTED:
        # An error: Tune would give the next trial to an actor that returns.
        raise PreemptedError(f"its node is taken away; its checkpoint of step {outcome.step} is written")


def cache_folder(store: Store, drivers: str, spec: TrialSpec) -> Path:
    """Where this machine has what a trial reads: the driver's folder, or, where records are at a URL, its own, into
    which what is missing is fetched."""
    if isinstance(store.root, Path):
        return Path(drivers)
    folder = cache_of(store.root)
    for name in spec.cached:
        fetch(store.root.parent, folder, name)
    return folder


def token_cache(root: Path, key: str) -> TokenCache:
    """The opened token cache, kept between the trials of an actor."""
    path = root / "tokens" / key
    if str(path) not in _CACHES:
        _CACHES[str(path)] = TokenCache.open(path)
    return _CACHES[str(path)]


def _own_hash() -> str:
    if "hash" not in _HASH:
        _HASH["hash"] = source_hash()
    return _HASH["hash"]


_HASH: dict[str, str] = {}
