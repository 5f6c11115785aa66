"""Rotary positions on CPUs by a kernel of our own (cpu.cpp): one pass each way, in fp32; nothing is kept."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from kernels import native

TAKES = (
    "x (B, T, H, R) in fp32 or bf16 with an even R, and fp32 tables (T, 1, R) or (B, T, 1, R) without gradients, in "
    "the CPU's memory"
)


def takes(x_BTHR: Tensor, cos: Tensor, signed_sin: Tensor) -> bool:
    """Whether the kernel is there for such tensors."""
    if x_BTHR.ndim != 4 or not cos.dtype == signed_sin.dtype == torch.float32:
        return False
    B, T, _, R = x_BTHR.shape
    wanted = (T, 1, R) if cos.ndim == 3 else (B, T, 1, R)
    if R % 2 or not cos.shape == signed_sin.shape == wanted:
        return False
    if (cos.requires_grad or signed_sin.requires_grad) and torch.is_grad_enabled():
        return False
    return native.computes(x_BTHR, cos, signed_sin)


def _turned(x_BTHR: Tensor, cos: Tensor, signed_sin: Tensor, sign: float) -> Tensor:
    if x_BTHR.stride(-1) != 1:
        x_BTHR = x_BTHR.contiguous()
    B, T, H, R = x_BTHR.shape
    out = x_BTHR.new_empty(B, T, H, R)
    sizes = (ctypes.c_int64 * 4)(B, T, H, R)
    strides = (ctypes.c_int64 * 3)(*x_BTHR.stride()[:3])
    per_text = T * R if cos.ndim == 4 else 0
    bf16 = int(x_BTHR.dtype == torch.bfloat16)
    native.call("rotary", bf16, sizes, x_BTHR, strides, cos, signed_sin, per_text, sign, out)
    return out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTHR: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        ctx.cos, ctx.signed_sin = cos, signed_sin  # buffers of the model, or made of them: no parameters
        return _turned(x_BTHR, cos, signed_sin, 1.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _turned(grad, ctx.cos, ctx.signed_sin, -1.0), None, None


def rotary(x_BTHR: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Same contract as `reference.rotary`; in bf16 it rounds once, at the end. Differentiable once."""
    cos, signed_sin = cos.contiguous(), signed_sin.contiguous()
    if torch.is_grad_enabled() and x_BTHR.requires_grad:
        out: Tensor = _Rotary.apply(x_BTHR, cos, signed_sin)
        return out
    return _turned(x_BTHR, cos, signed_sin, 1.0)
