"""How loss and speed behave with text length and batch size (forward passes of the trained model)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from fabric.evaluate.lm import NEXT_TOKEN, score
from fabric.train.memory import is_out_of_memory
from fabric.train.step import autocast

if TYPE_CHECKING:
    from fabric.data import TokenCache
    from fabric.train.objectives.base import ObjectiveConfig

TOKENS_SCORED = 16_384  # per length
TOKENS_TIMED = 2_048  # per length and per batch size
REPEATS = 3


def by_length(
    model: Any,
    cache: TokenCache,
    lengths: tuple[int, ...],
    precision: Any,
    objective: ObjectiveConfig = NEXT_TOKEN,
) -> dict[str, float | None]:
    """`val_loss_at_<T>` and `tokens_per_second_at_<T>`; None where the split is too short or the model refuses T."""
    found: dict[str, float | None] = {}
    for length in lengths:
        batch_size = max(1, TOKENS_TIMED // length)
        loss = speed = None
        if length <= model.config.max_seq_len and cache.n_rows("validation", length) > 0:
            how = (TOKENS_SCORED, batch_size, precision, objective)
            loss = score(model, cache, "validation", length, *how).loss
            speed = _speed(model, batch_size, length, precision, objective)
        found[f"val_loss_at_{length}"] = loss
        found[f"tokens_per_second_at_{length}"] = speed
    return found


def by_batch_size(
    model: Any,
    seq_len: int,
    batch_sizes: tuple[int, ...],
    precision: Any,
    objective: ObjectiveConfig = NEXT_TOKEN,
) -> dict[str, float | None]:
    """`tokens_per_second_batch_<B>` at the training length; None where B texts do not fit in memory."""
    found: dict[str, float | None] = {}
    for size in batch_sizes:
        speed = None
        try:
            speed = _speed(model, size, seq_len, precision, objective)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        found[f"tokens_per_second_batch_{size}"] = speed
    return found


def _speed(model: Any, batch_size: int, seq_len: int, precision: Any, objective: ObjectiveConfig) -> float:
    """Tokens per second of scoring random tokens, head and loss included; the fastest of a few after a warm-up."""
    n_ids, device = model.config.vocab_size - objective.EXTRA_IDS, next(model.parameters()).device
    pair = objective.examples(objective.random_rows(batch_size, seq_len, n_ids), seed=0, step=0, n_ids=n_ids)
    ids_BT, targets_BT = (torch.from_numpy(x).to(device) for x in pair)
    times = []
    with autocast(ids_BT.device.type, precision):
        for _ in range(1 + REPEATS):
            at = time.perf_counter()
            objective.nll(model, ids_BT, targets_BT)
            if ids_BT.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - at)
    return ids_BT.numel() / min(times[1:])
