"""Everything measured at the end of a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import models
from fabric.evaluate.behaviour import by_batch_size, by_length
from fabric.evaluate.lm import evaluating, score
from fabric.evaluate.minimal_pairs import minimal_pairs_accuracy
from fabric.evaluate.recall import recall
from fabric.evaluate.samples import diversity, draw

if TYPE_CHECKING:
    from fabric.data import TokenCache
    from fabric.evaluate.config import EvaluateConfig

BF16_BYTES = 2


def final_metrics(
    model: Any,
    cache: TokenCache,
    config: EvaluateConfig,
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    precision: Literal["fp32", "bf16", "fp16"],
) -> tuple[dict[str, float | None], list[str]]:
    """The metrics of `fabric.job.metrics` that are taken once, at the end, and the generated samples' texts.

    What does not fit the model or the split is None (its key is there if the job asked for it). Nothing but the
    speeds depends on `batch_size`. The model's mode and the global random state are as before afterwards.
    Raises ValueError when the validation split does not hold one window of `seq_len`.
    """
    whole = score(model, cache, "validation", seq_len, config.final_val_tokens, batch_size, precision)
    metrics: dict[str, float | None] = {
        "val_loss": whole.loss,
        "val_perplexity": whole.perplexity,
        "val_bits_per_byte": whole.bits_per_byte,
        "state_bytes_per_token": models.state_bytes(model.config, seq_len, BF16_BYTES) / seq_len,
    }
    texts: list[str] = []
    with evaluating(model):
        if config.recall:
            found = recall(model, cache, seq_len, batch_size=batch_size, precision=precision)
            metrics["recall_accuracy"] = found.accuracy if found else None
            metrics["recall_gain"] = found.gain if found else None
        if config.minimal_pairs is not None:
            metrics["minimal_pairs_accuracy"] = minimal_pairs_accuracy(
                model, cache.tokenizer(), config.minimal_pairs, precision=precision
            )
        if config.samples is not None:
            tokenizer = cache.tokenizer()
            samples = draw(model, tokenizer, config.samples, seed)
            metrics |= diversity(samples)
            texts = [tokenizer.decode(s) for s in samples]
        metrics |= by_length(model, cache, config.lengths, precision)
        metrics |= by_batch_size(model, seq_len, config.batch_sizes, precision)
    return metrics, texts
