"""In-context recall: real text is repeated, and the second time it could be copied.

A window holds a segment of validation text twice, [x; x]. `recall_accuracy` is the share of the second occurrence's
tokens predicted right, `recall_gain` the loss of the first occurrence minus that of the second (nats a token): 0 for
a model that does not look back. The second occurrence's first token has nothing to be copied from and is left out,
in both occurrences. (Induction: Olsson et al. 2022, arXiv 2209.11895.)

Shapes: B batch, S segment, T = 2S tokens, N = B(T-1) rows, C rows of one chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fabric.train.loss import WHOLE_LOGITS
from fabric.train.step import autocast

if TYPE_CHECKING:
    from fabric.data import TokenCache

N_WINDOWS = 32
SAMPLE_SEED = 20_240_607  # fixed: every trial is asked the same


class Recall(NamedTuple):
    """`accuracy` in [0, 1], `gain` in nats a token."""

    accuracy: float
    gain: float


def recall(
    model: Any, cache: TokenCache, seq_len: int, *, batch_size: int = 8, precision: Any = "fp32"
) -> Recall | None:
    """Recall over a fixed sample of validation segments of half a window; None when the split has none."""
    half = seq_len // 2
    n_rows = cache.n_rows("validation", half)
    if half < 2 or n_rows == 0:
        return None
    chosen = np.random.default_rng(SAMPLE_SEED).permutation(n_rows)[:N_WINDOWS]
    x_NS = torch.from_numpy(cache.rows("validation", half, np.sort(chosen))[:, :half])
    twice_NT = torch.cat([x_NS, x_NS], dim=1)
    right, first, second = 0, 0.0, 0.0
    for ids_BT in twice_NT.split(batch_size):
        ids_BT = ids_BT.to(model.lm_head_weight.device)
        with autocast(ids_BT.device.type, precision):
            nll_BT, hit_BT = _nll_and_hits(model, ids_BT)
        # Position t predicts token t + 1: the second occurrence's tokens 1.. stand at positions half.. of it.
        first += float(nll_BT[:, : half - 1].sum())
        second += float(nll_BT[:, half:].sum())
        right += int(hit_BT[:, half:].sum())
    n = len(twice_NT) * (half - 1)
    return Recall(right / n, (first - second) / n)


def _nll_and_hits(model: Any, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (fp64, nats) of every token but the first, and whether it was the likeliest one.

    Both from the same logits, of which no more than `WHOLE_LOGITS` are in memory at a time.
    """
    hidden_ND, targets_N = model.hidden(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].reshape(-1)
    weight_VD = model.lm_head_weight
    size = max(1, WHOLE_LOGITS // weight_VD.shape[0])
    nll, hits = [], []
    for hidden_CD, target_C in zip(hidden_ND.split(size), targets_N.split(size)):
        logits_CV = F.linear(hidden_CD, weight_VD).float()
        nll.append(F.cross_entropy(logits_CV, target_C, reduction="none").double())
        hits.append(logits_CV.argmax(-1) == target_C)
    shape = ids_BT[:, 1:].shape
    return torch.cat(nll).reshape(shape), torch.cat(hits).reshape(shape)
