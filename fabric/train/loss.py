"""Next-token cross entropy: exact, without a full fp32 copy of the logits where the vocabulary is large.

Shapes: B batch, T tokens, N = B*T rows, D width, V vocabulary, C rows of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cross_entropy import cross_entropy_
from kernels.once import differentiable_once

# Logits held at once (64 MiB in fp32), or the size of the output matrix where that is larger.
WHOLE_LOGITS = 2**24


def sum_nll(model: Any, input_ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Summed negative log-likelihood of the targets in nats, an fp32 scalar; targets of -100 do not count.

    Divide by the number of scored tokens of the *global* batch: a mean of means is wrong when counts differ.
    """
    hidden_ND, weight_VD = model.hidden(input_ids_BT).flatten(0, 1), model.lm_head_weight
    return sum_nll_in_chunks(hidden_ND, weight_VD, targets_BT.reshape(-1))


def sum_nll_in_chunks(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, n_rows: int | None = None
) -> Tensor:
    """Summed cross entropy of `hidden @ weight.T`, holding the logits of at most `n_rows` rows at a time.

    Both gradients are computed in the forward pass, chunk by chunk, so that no chunk is computed twice; differentiable
    once. Raises ValueError where the numbers of rows and targets differ.
    """
    _check_counts(hidden_ND, targets_N)
    n_rows = rows_at_once(*weight_VD.shape) if n_rows is None else n_rows
    result: Tensor = _LinearCrossEntropy.apply(
        hidden_ND, weight_VD, targets_N, n_rows, hidden_ND[:0].clone(), weight_VD[:0].clone()
    )
    return result


def nll_per_token(model: Any, input_ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Negative log-likelihood of every target in nats, fp32 [B, T] (0 where the target is -100); no gradient."""
    with torch.no_grad():
        hidden_ND = model.hidden(input_ids_BT).flatten(0, 1)
        _check_counts(hidden_ND, targets_BT)
        weight_VD = model.lm_head_weight
        size = rows_at_once(*weight_VD.shape)
        chunks = zip(hidden_ND.split(size), targets_BT.reshape(-1).split(size))
        parts = [cross_entropy_(F.linear(h_CD, weight_VD), t_C, gradient=False) for h_CD, t_C in chunks]
        return torch.cat(parts).reshape(targets_BT.shape)


def _check_counts(hidden_ND: Tensor, targets: Tensor) -> None:
    if hidden_ND.shape[0] != targets.numel():
        raise ValueError(
            f"{hidden_ND.shape[0]} tokens have {targets.numel()} targets (shape {tuple(targets.shape)}): give one each"
        )


def rows_at_once(vocab_size: int, width: int) -> int:
    """Rows whose logits are computed together: 2**24 logits, or as many as the output matrix has weights.

    With fewer, adding up the chunks' gradients of that matrix would cost more than the products themselves.
    """
    return max(1, WHOLE_LOGITS // vocab_size, width)


def _compute_dtype(hidden_ND: Tensor) -> torch.dtype:
    device = hidden_ND.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    """sum_n [logsumexp(W h_n) - (W h_n)[t_n]]; its gradient in the logits is softmax - onehot."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, n_rows: int, *sources: Tensor
    ) -> Tensor:
        dtype = _compute_dtype(hidden_ND)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        need_h, need_w = ctx.needs_input_grad[:2]
        with torch.autocast(hidden_ND.device.type, enabled=False):
            hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
            total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
            d_hidden_ND = torch.empty_like(hidden_ND) if need_h else None
            d_weight_VD: Tensor | None = None
            for start in range(0, hidden_ND.shape[0], n_rows):
                h_CD, t_C = hidden_ND[start : start + n_rows], targets_N[start : start + n_rows]
                d_CV = F.linear(h_CD, weight_VD)
                total += cross_entropy_(d_CV, t_C, gradient=need_h or need_w).sum()
                if d_hidden_ND is not None:
                    torch.mm(d_CV, weight_VD, out=d_hidden_ND[start : start + n_rows])
                if need_w:
                    d_weight_VD = _added(d_weight_VD, d_CV.T, h_CD)
        # Empty ones, which hold no memory: what gradients depend on, for a second derivative to be refused.
        ctx.save_for_backward(d_hidden_ND, d_weight_VD, *sources)
        return total

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        d_hidden_ND, d_weight_VD, *_ = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        # The scale (1 / count, times fp16's loss scale) is applied in fp32: the sums stay in fp16's range.
        d_hidden = None if d_hidden_ND is None else (d_hidden_ND.float() * grad).to(hidden_dtype)
        d_weight = None if d_weight_VD is None else (d_weight_VD * grad).to(weight_dtype)
        return d_hidden, d_weight, None, None, None, None


def _added(sum_VD: Tensor | None, d_VC: Tensor, h_CD: Tensor) -> Tensor:
    """sum + d @ h in fp32 (at least); in place where there is a sum."""
    if sum_VD is None:
        product = d_VC @ h_CD
        return product if product.dtype == torch.float64 else product.float()
    return sum_VD.addmm_(d_VC, h_CD) if h_CD.dtype == sum_VD.dtype else sum_VD.add_(d_VC @ h_CD)
