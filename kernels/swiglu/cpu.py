"""SwiGLU's gated unit on CPUs by kernels of our own (cpu.cpp): one pass each way; backward keeps gate and up only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import native
from kernels.once import differentiable_once

TAKES = "gate and up of one shape and dtype, fp32 or bf16, in the CPU's memory"


def takes(gate: Tensor, up: Tensor) -> bool:
    """Whether the kernels are there for such tensors."""
    return gate.dtype == up.dtype and gate.shape == up.shape and native.computes(gate, up)


def _forward(gate: Tensor, up: Tensor) -> Tensor:
    out = torch.empty_like(gate)
    native.call("swiglu_forward", int(gate.dtype == torch.bfloat16), gate.numel(), gate, up, out)
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _forward(gate, up)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad, d_gate, d_up = grad.contiguous(), torch.empty_like(gate), torch.empty_like(up)
        bf16 = int(gate.dtype == torch.bfloat16)
        native.call("swiglu_backward", bf16, gate.numel(), gate, up, grad, d_gate, d_up)
        return d_gate, d_up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Same contract as `reference.swiglu`; differentiable once."""
    gate, up = gate.contiguous(), up.contiguous()
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        out: Tensor = _SwiGLU.apply(gate, up)
        return out
    return _forward(gate, up)
