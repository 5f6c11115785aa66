"""Next-token cross entropy: exact, without a full fp32 copy of the logits where the vocabulary is large.

Shapes: B batch, T tokens, N = B*T rows, D width, V vocabulary, C rows of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
# Logits of more elements than this (64 MiB in fp32) are never whole in memory.
WHOLE_LOGITS = 2**24
# On a CPU a chunk of logits (1 MiB in fp32) stays in the cache through all that is done with it.
CACHED_LOGITS, FEWEST_ROWS = 2**18, 128


def sum_nll(model: Any, input_ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Summed negative log-likelihood of the targets in nats, an fp32 scalar; targets of -100 do not count.

    Divide by the number of scored tokens of the *global* batch: a mean of means is wrong when counts differ.
    """
    targets_N = targets_BT.reshape(-1)
    hidden_ND, weight_VD = model.hidden(input_ids_BT).flatten(0, 1), model.lm_head_weight
    size = rows_at_once(weight_VD.shape[0], weight_VD.device.type)
    if targets_N.numel() > size:
        return sum_nll_in_chunks(hidden_ND, weight_VD, targets_N, size * weight_VD.shape[0])
    logits_NV = F.linear(hidden_ND, weight_VD)
    return F.cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORED, reduction="sum")


def sum_nll_in_chunks(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk_elements: int = WHOLE_LOGITS
) -> Tensor:
    """Summed cross entropy of `hidden @ weight.T`, holding at most `chunk_elements` logits at a time.

    Both gradients are computed in the forward pass, chunk by chunk, so that no chunk is computed twice.
    """
    result: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, chunk_elements)
    return result


def nll_per_token(model: Any, input_ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Negative log-likelihood of every target in nats, fp32 [B, T] (0 where the target is -100); no gradient."""
    with torch.no_grad():
        hidden_ND = model.hidden(input_ids_BT).flatten(0, 1)
        weight_VD = model.lm_head_weight
        targets_N = targets_BT.reshape(-1)
        size = rows_at_once(weight_VD.shape[0], weight_VD.device.type)
        parts = [
            F.cross_entropy(F.linear(h_CD, weight_VD).float(), t_C, ignore_index=IGNORED, reduction="none")
            for h_CD, t_C in zip(hidden_ND.split(size), targets_N.split(size))
        ]
        return torch.cat(parts).reshape(targets_BT.shape)


def rows_at_once(vocab_size: int, device: str) -> int:
    """Rows whose logits are computed together; more than there are means all."""
    most = _chunk_rows(vocab_size, WHOLE_LOGITS)
    if device != "cpu" or torch.compiler.is_compiling():  # compiled code fuses what follows the product
        return most
    return min(most, max(FEWEST_ROWS, _chunk_rows(vocab_size, CACHED_LOGITS)))


def _chunk_rows(vocab_size: int, chunk_elements: int) -> int:
    return max(1, chunk_elements // vocab_size)


def _compute_dtype(hidden_ND: Tensor) -> torch.dtype:
    device = hidden_ND.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    """sum_n [logsumexp(W h_n) - (W h_n)[t_n]]; its gradient in the logits is softmax - onehot."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, elements: int) -> Tensor:
        dtype = _compute_dtype(hidden_ND)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        need_h, need_w = ctx.needs_input_grad[:2]
        with torch.autocast(hidden_ND.device.type, enabled=False):
            hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
            total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
            d_hidden_ND = torch.empty_like(hidden_ND) if need_h else None
            d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if need_w else None
            size = _chunk_rows(weight_VD.shape[0], elements)
            for start in range(0, hidden_ND.shape[0], size):
                h_CD, t_C = hidden_ND[start : start + size], targets_N[start : start + size]
                logits_CV = F.linear(h_CD, weight_VD).float()
                scored_C1 = (t_C != IGNORED).unsqueeze(-1)
                index_C1 = t_C.clamp(min=0).unsqueeze(-1)
                p_CV = logits_CV.softmax(-1)
                # The largest logit's own probability is never small: log-sum-exp without another exponential.
                lse_C1 = logits_CV.amax(-1, keepdim=True) - p_CV.amax(-1, keepdim=True).log()
                nll_C1 = lse_C1 - logits_CV.gather(-1, index_C1)
                total += nll_C1.masked_fill_(~scored_C1, 0.0).sum()
                if not (need_h or need_w):
                    continue
                # Rows that do not count are struck out of the narrow factors, not of the wide one.
                d_CV = p_CV.scatter_add_(-1, index_C1, -torch.ones_like(index_C1, dtype=torch.float32)).to(
                    dtype
                )
                if d_hidden_ND is not None:
                    d_h_CD = torch.mm(d_CV, weight_VD, out=d_hidden_ND[start : start + size])
                    d_h_CD.masked_fill_(~scored_C1, 0.0)
                if d_weight_VD is not None:
                    h_CD = h_CD.masked_fill(~scored_C1, 0.0)
                    if dtype == torch.float32:
                        d_weight_VD.addmm_(d_CV.T, h_CD)
                    else:
                        d_weight_VD += d_CV.T @ h_CD
        ctx.save_for_backward(d_hidden_ND, d_weight_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        # The scale (1 / count, times fp16's loss scale) is applied in fp32: the sums stay in fp16's range.
        d_hidden = None if d_hidden_ND is None else (d_hidden_ND.float() * grad).to(hidden_dtype)
        d_weight = None if d_weight_VD is None else (d_weight_VD * grad).to(weight_dtype)
        return d_hidden, d_weight, None, None
