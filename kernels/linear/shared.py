"""Products that share their input: its gradient is accumulated inside the products, without a pass for every sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.once import differentiable_once


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x_ND, *weights)
        return tuple(x_ND @ w.T for w in weights)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, *weights = ctx.saved_tensors
        dx_ND: Tensor | None = None
        if ctx.needs_input_grad[0]:
            dx_ND = grads[0] @ weights[0]
            for grad, weight in zip(grads[1:], weights[1:]):
                dx_ND.addmm_(grad, weight)
        needs = ctx.needs_input_grad[1:]
        return dx_ND, *(grad.T @ x_ND if need else None for grad, need in zip(grads, needs))


def linears(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Same contract as `reference.linears`; differentiable once."""
    outs: tuple[Tensor, ...] = _Linears.apply(x.flatten(0, -2), *weights)
    return tuple(out.unflatten(0, x.shape[:-1]) for out in outs)
