"""Language-model loss of a split: the number every comparison rests on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from fabric.train.group import ALONE, Group
from fabric.train.objectives.answers import Answers
from fabric.train.objectives.base import ObjectiveConfig
from fabric.train.objectives.next_token import NextToken
from fabric.train.objectives.readout import ReadoutObjective
from fabric.train.step import autocast

if TYPE_CHECKING:
    from fabric.data import TokenCache

NEXT_TOKEN = NextToken(kind="next_token")
EXAMPLES_SEED = 20_240_611  # fixed: where an objective draws what it asks, every trial is asked the same


@dataclass(frozen=True)
class LMScore:
    """`loss` in nats per predicted token, `n_tokens` of them; `bits_per_byte` compares tokenizers: it divides by the
    text's own bytes. Perplexity and bits per byte are None where the loss is not the text's likelihood. Of labelled
    examples, `accuracy` is the share of asked positions answered right, `exact` that of rows with all of them right,
    and the loss is a mean over rows (`n_tokens` counts these), and `said` is what the model answers to each row
    where that was asked for; of a text the first two are None and nothing is said.
    """

    loss: float
    perplexity: float | None
    bits_per_byte: float | None
    n_tokens: int
    n_bytes: float
    accuracy: float | None = None
    exact: float | None = None
    said: tuple[Any, ...] = ()


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
    model: Any,
    cache: TokenCache,
    split: Literal["train", "validation", "test"],
    seq_len: int,
    max_tokens: int | None = None,
    batch_size: int = 8,
    precision: str = "fp32",
    objective: ObjectiveConfig = NEXT_TOKEN,
    group: Group = ALONE,
    read: bool = False,
) -> LMScore:
    """The objective's loss over windows of `seq_len` tokens, one after the other from the start of the split.

    `max_tokens` is rounded down to whole windows (at least one); None reads the whole split. Each token's loss is
    fp32 and the sum fp64, so the result does not depend on `batch_size`. Ranks of a `group`, each with the whole model,
    take batches in turn and come to the sums of one. `read`: with the answers to labelled rows.
    Raises ValueError when the split does not hold one window.
    """
    available = cache.n_rows(split, seq_len)
    if available == 0:
        raise ValueError(
            f"the {split} split holds no window of {seq_len} tokens; "
            "use more text, a larger share for the split, or a shorter seq_len"
        )
    n_rows = available if max_tokens is None else min(available, max(1, max_tokens // seq_len))
    device = next(model.parameters()).device
    # Of this rank's batches: first row, nats, bytes, counts of answers, answers.
    sums: list[tuple[int, float, float, np.ndarray, Sequence[Any]]] = []
    with evaluating(model):
        for start in range(group.rank * batch_size, n_rows, group.world * batch_size):
            rows = cache.rows(split, seq_len, range(start, min(start + batch_size, n_rows)))
            pair = objective.examples(
                rows, seed=EXAMPLES_SEED, step=0, n_ids=cache.vocab_size, first_row=start
            )
            ids_BT, targets_BT = (torch.from_numpy(x).to(device) for x in pair)
            with autocast(device.type, precision):
                nats, counts, said = _judged(objective, model, ids_BT, targets_BT, read)
            n_bytes = cache.n_bytes(split, rows[:, 1:]) if objective.IS_LIKELIHOOD else 0.0
            sums.append((start, nats, n_bytes, counts, said))
    in_order = sorted(chain.from_iterable(group.gathered(sums)), key=lambda s: s[0])
    nats, n_bytes = sum(s[1] for s in in_order), sum(s[2] for s in in_order)
    n_tokens = n_rows * objective.n_targets(seq_len)
    loss = nats / n_tokens
    perplexity = bits_per_byte = None
    if objective.IS_LIKELIHOOD:
        perplexity = math.exp(loss) if loss < 700 else math.inf
        bits_per_byte = nats / math.log(2) / n_bytes if n_bytes else math.nan
    n_right, n_asked, n_exact = sum((s[3] for s in in_order), np.zeros(3, np.int64)).tolist()
    accuracy, exact = (n_right / n_asked, n_exact / n_rows) if n_asked else (None, None)
    heard = tuple(chain.from_iterable(s[4] for s in in_order))
    return LMScore(loss, perplexity, bits_per_byte, n_tokens, n_bytes, accuracy, exact, heard)


def _judged(
    objective: ObjectiveConfig, model: Any, ids_BT: torch.Tensor, targets_BT: torch.Tensor, read: bool
) -> tuple[float, np.ndarray, Sequence[Any]]:
    """Summed nats of some rows; of labelled ones also right and asked positions and rows all right (else zeros), and
    what is said to each."""
    if not isinstance(objective, Answers | ReadoutObjective):
        return float(objective.nll(model, ids_BT, targets_BT).double().sum()), np.zeros(3, np.int64), ()
    rows = objective.judged(model, ids_BT, targets_BT, read)
    exact_B = rows.n_right_B == rows.n_asked_B
    counts = torch.stack((rows.n_right_B.sum(), rows.n_asked_B.sum(), exact_B.sum()))
    return float(rows.nll_B.sum()), counts.cpu().numpy(), rows.said_B
