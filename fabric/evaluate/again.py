"""A finished trial measured again: another run wants other final measurements, of the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric.evaluate.final import final_metrics, is_final_metric, trial_tasks

if TYPE_CHECKING:
    from fabric.data import TokenCache
    from fabric.planning.trial import TrialSpec
    from fabric.store import Checkpoint, TrialRecord


def finished_model(spec: TrialSpec, record: TrialRecord) -> tuple[Checkpoint, Any]:
    """The last weights of a finished trial, in a process settled for it. Raises RuntimeError when there are none."""
    from fabric.train import process
    from fabric.train.checkpoint import load_model, newest_checkpoint

    process.settle(spec)
    found = newest_checkpoint(record)
    if found is None:
        raise RuntimeError(
            f"trial {record.id} has no checkpoint left to measure with; delete its folder to train it"
        )
    checkpoint, files = found
    return checkpoint, load_model(spec, files)


def final_row(spec: TrialSpec, record: TrialRecord, cache: TokenCache) -> dict[str, Any]:
    """The last row of a finished trial as `spec.evaluate` wants it measured: from the record, else measured now.

    What was measured while it trained (speed, memory, stability) stays as it is.
    """
    known = record.final(spec.evaluation_key)
    if known is not None:
        return dict(known)
    _, model = finished_model(spec, record)
    metrics, beside = final_metrics(
        model,
        cache,
        spec.evaluate,
        seq_len=spec.data.seq_len,
        batch_size=spec.train.micro_batch_size or spec.train.batch_size,
        seed=spec.seed,
        precision=spec.train.precision,
        objective=spec.train.objective,
        tasks=trial_tasks(spec, cache),
    )
    before = record.final() or {}
    row = {**{k: v for k, v in before.items() if not is_final_metric(k)}, **metrics}
    if beside:
        record.write_evaluation(f"beside-{spec.evaluation_key}", beside)
    record.write_evaluation(f"final-{spec.evaluation_key}", row)
    return dict(record.final(spec.evaluation_key) or {})
