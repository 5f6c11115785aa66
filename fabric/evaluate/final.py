"""Everything measured at the end of a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import models
from fabric.evaluate.behaviour import by_batch_size, by_length
from fabric.evaluate.lm import NEXT_TOKEN, evaluating, score
from fabric.evaluate.minimal_pairs import paradigm_accuracy
from fabric.evaluate.recall import recall
from fabric.evaluate.samples import diversity, draw
from fabric.train.group import ALONE, Group
from fabric.train.objectives.readout import ReadoutObjective

if TYPE_CHECKING:
    from fabric.data import TokenCache
    from fabric.evaluate.config import EvaluateConfig
    from fabric.evaluate.in_trial import OwnExamples, TrialTasks
    from fabric.planning.trial import TrialSpec
    from fabric.train.objectives.base import ObjectiveConfig

BF16_BYTES = 2
FAMILIES = (
    "task.",
    "val_",
    "recall_",
    "minimal_pairs_",
    "distinct_",
    "repetition_",
    "state_bytes_per_token",
    "tokens_per_second_at_",
    "tokens_per_second_batch_",
)


def is_final_metric(key: str) -> bool:
    """Whether a key is one that `final_metrics` measures."""
    return key.startswith(FAMILIES) and key != "val_tokens"


def trial_tasks(spec: TrialSpec, cache: TokenCache) -> TrialTasks | OwnExamples | None:
    """The trial's tasks with their items, of one that answers by a readout its own examples; None where it has none.

    Raises ValueError for what cannot be asked of it.
    """
    if isinstance(spec.train.objective, ReadoutObjective):
        from fabric.evaluate.in_trial import OwnExamples  # with scipy

        return OwnExamples(spec, cache)
    if not spec.evaluate.tasks:
        return None
    from fabric.evaluate.in_trial import TrialTasks  # with scipy

    return TrialTasks(spec.evaluate, spec.model, cache.tokenizer(), spec.train.precision)


def final_metrics(
    model: Any,
    cache: TokenCache,
    config: EvaluateConfig,
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    precision: str,
    objective: ObjectiveConfig = NEXT_TOKEN,
    group: Group = ALONE,
    tasks: TrialTasks | OwnExamples | None = None,
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """The metrics of `fabric.job.metrics` that are taken once, at the end, and what is kept beside them by name:
    the texts of the samples, the minimal pairs' accuracy by paradigm, the tasks' outcomes. `tasks`: `trial_tasks`.

    What does not fit the model or the split is None (its key is there if the job asked for it). Nothing but the
    speeds depends on `batch_size`. The model's mode and the global random state are as before afterwards.
    Ranks of a `group`, each with the whole model, share the loss; rank 0 does the rest.
    Raises ValueError when the validation split does not hold one window of `seq_len`.
    """
    how = (config.final_val_tokens, batch_size, precision, objective, group)
    whole = score(model, cache, "validation", seq_len, *how, read=isinstance(objective, ReadoutObjective))
    metrics: dict[str, float | None] = {
        "val_loss": whole.loss,
        "val_perplexity": whole.perplexity,
        "val_bits_per_byte": whole.bits_per_byte,
        "state_bytes_per_token": models.state_bytes(model.config, seq_len, BF16_BYTES) / seq_len,
    }
    if whole.accuracy is not None:
        metrics |= {"val_accuracy": whole.accuracy, "val_exact": whole.exact}
    beside: dict[str, Any] = {}
    if not group.leads:
        return group.told((metrics, beside))
    with evaluating(model):
        if config.recall:
            found = recall(model, cache, seq_len, batch_size=batch_size, precision=precision)
            metrics["recall_accuracy"] = found.accuracy if found else None
            metrics["recall_gain"] = found.gain if found else None
        if config.minimal_pairs is not None:
            shares = paradigm_accuracy(model, cache.tokenizer(), config.minimal_pairs, precision=precision)
            metrics["minimal_pairs_accuracy"] = sum(shares.values()) / len(shares) if shares else None
            beside["minimal_pairs"] = shares
        if config.samples is not None:
            tokenizer = cache.tokenizer()
            samples = draw(model, tokenizer, config.samples, seed)
            metrics |= diversity(samples)
            beside["samples"] = [tokenizer.decode(s) for s in samples]
        if tasks is not None:
            headlines, beside["tasks"] = tasks.measure(model, whole.said)
            metrics |= headlines
        metrics |= by_length(model, cache, config.lengths, precision, objective)
        metrics |= by_batch_size(model, seq_len, config.batch_sizes, precision, objective)
    return group.told((metrics, beside))
