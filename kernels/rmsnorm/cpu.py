"""RMSNorm on CPUs by kernels of our own (cpu.cpp): one pass forward, one backward; x and 1/rms are kept.

PyTorch has no fused CPU backward of it: it keeps two copies of x and makes more passes over them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import native
from kernels.once import differentiable_once

TAKES = "x (…, D) in fp32 or bf16 and an fp32 weight (D), in the CPU's memory, to a result in fp32 or bf16"


def takes(x: Tensor, weight_D: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels are there for such tensors."""
    if dtype not in native.DTYPES or weight_D.dtype != torch.float32 or weight_D.shape != x.shape[-1:]:
        return False
    return x.ndim > 0 and native.computes(x, weight_D)


def _kinds(x: Tensor, y: Tensor) -> int:
    return int(x.dtype == torch.bfloat16) + 2 * int(y.dtype == torch.bfloat16)


def _forward(x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """y in `dtype`, and 1/rms of every row."""
    width = x.shape[-1]
    # Made from x: defaults of dtype and device are the user's.
    y, rstd = x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:-1], dtype=torch.float32)
    native.call("rms_norm_forward", _kinds(x, y), rstd.numel(), width, x, weight_D, eps, y, rstd)
    return y, rstd


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        y, rstd = _forward(x, weight_D, eps, dtype)
        ctx.save_for_backward(x, weight_D, rstd)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight_D, rstd = ctx.saved_tensors
        grad, dx = grad.contiguous(), torch.empty_like(x)
        sums_ND = weight_D.new_empty(torch.get_num_threads(), x.shape[-1])
        native.call(
            "rms_norm_backward",
            _kinds(x, grad),
            rstd.numel(),
            x.shape[-1],
            x,
            weight_D,
            rstd,
            grad,
            dx,
            sums_ND,
        )
        return dx, sums_ND.sum(0), None, None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Same contract as `reference.rms_norm`; differentiable once."""
    x, weight_D = x.contiguous(), weight_D.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or weight_D.requires_grad):
        y: Tensor = _RMSNorm.apply(x, weight_D, eps, dtype)
        return y
    return _forward(x, weight_D, eps, dtype)[0]
