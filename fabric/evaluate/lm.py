"""Language-model loss of a split: the number every comparison rests on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from fabric.train.loss import nll_per_token
from fabric.train.step import autocast

if TYPE_CHECKING:
    from fabric.data import TokenCache
    from models import CausalLM


@dataclass(frozen=True)
class LMScore:
    """`loss` in nats per token; `bits_per_byte` compares tokenizers: it divides by the text's own bytes."""

    loss: float
    perplexity: float
    bits_per_byte: float
    n_tokens: int
    n_bytes: float


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients; its mode is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def score(
    model: CausalLM,
    cache: TokenCache,
    split: Literal["train", "validation", "test"],
    seq_len: int,
    max_tokens: int | None = None,
    batch_size: int = 8,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> LMScore:
    """Loss over windows of `seq_len` tokens, one after the other from the start of the split.

    `max_tokens` is rounded down to whole windows (at least one); None reads the whole split. Each token's loss is
    fp32 and the sum fp64, so the result does not depend on `batch_size`. Raises ValueError when the split does not
    hold one window.
    """
    available = cache.n_rows(split, seq_len)
    if available == 0:
        raise ValueError(
            f"the {split} split holds no window of {seq_len} tokens; "
            "use more text, a larger share for the split, or a shorter seq_len"
        )
    n_rows = available if max_tokens is None else min(available, max(1, max_tokens // seq_len))
    device = model.lm_head_weight.device
    nats, n_bytes = 0.0, 0.0
    with evaluating(model):
        for start in range(0, n_rows, batch_size):
            rows = cache.rows(split, seq_len, range(start, min(start + batch_size, n_rows)))
            n_bytes += cache.n_bytes(split, rows[:, 1:])
            rows_BT1 = torch.from_numpy(rows).to(device)
            with autocast(device.type, precision):
                nll_BT = nll_per_token(model, rows_BT1[:, :-1], rows_BT1[:, 1:])
            nats += float(nll_BT.double().sum())
    n_tokens = n_rows * seq_len
    loss = nats / n_tokens
    return LMScore(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=nats / math.log(2) / n_bytes if n_bytes else math.nan,
        n_tokens=n_tokens,
        n_bytes=n_bytes,
    )
