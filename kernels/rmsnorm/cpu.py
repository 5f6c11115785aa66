"""RMSNorm for CPUs: backward through LayerNorm's fused kernel, and only x and 1/rms kept for it.

`F.rms_norm` has no fused CPU backward: it keeps two copies of x and makes more passes over them.
LayerNorm's fused backward, told that the mean is 0, computes dx = rstd * (gw - mean(gw) - x̂ * mean(gw * x̂))
with gw = g * weight: it is RMSNorm's gradient but for the term -mean(gw), which is added back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.rmsnorm.reference import wide


def _forward(x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y in x's dtype, and 1/rms (…, 1)."""
    x_wide = wide(x)
    norm = torch.linalg.vector_norm(x_wide, dim=-1, keepdim=True)
    rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x_wide * rstd).mul_(weight_D).to(x.dtype), rstd


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        y, rstd = _forward(x, weight_D, eps)
        ctx.save_for_backward(x, weight_D, rstd)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, rstd = ctx.saved_tensors
        x_wide, grad = wide(x), wide(grad).contiguous()
        weight_wide = weight_D.to(x_wide.dtype)
        width = x.shape[-1]
        dx, dweight_D, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x_wide, [width], torch.zeros_like(rstd), rstd, weight_wide, None, [True, True, False]
        )
        with torch.autocast("cpu", enabled=False):
            mean_gw = (grad @ weight_wide).div_(width)
        dx.addcmul_(rstd, mean_gw.unsqueeze(-1))
        return dx.to(x.dtype), dweight_D.to(weight_D.dtype), None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Same contract as `reference.rms_norm`; differentiable once."""
    if torch.is_grad_enabled() and (x.requires_grad or weight_D.requires_grad):
        return _RMSNorm.apply(x, weight_D, eps)
    return _forward(x, weight_D, eps)[0]
