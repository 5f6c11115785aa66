"""Products of few rows on CPUs by a kernel of our own (cpu.cpp): every matrix is read once, sums are in fp32."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels import native

MOST_ROWS = 8


def takes(x: Tensor, weights: tuple[Tensor, ...]) -> bool:
    """Whether the kernel is there for such tensors."""
    if x.numel() > MOST_ROWS * x.shape[-1] or any(w.dtype != x.dtype for w in weights):
        return False
    return native.computes(x, *weights) and all(w.is_contiguous() for w in weights)


def linears(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Same contract as `reference.linears`, without gradients; up to 8 rows."""
    x = x.contiguous()
    K, n = x.shape[-1], len(weights)
    outs = tuple(x.new_empty(*x.shape[:-1], w.shape[0]) for w in weights)
    widths = (ctypes.c_int64 * n)(*(w.shape[0] for w in weights))
    matrices = (ctypes.c_void_p * n)(*(w.data_ptr() for w in weights))
    results = (ctypes.c_void_p * n)(*(y.data_ptr() for y in outs))
    bf16 = int(x.dtype == torch.bfloat16)
    native.call("products_of_few_rows", bf16, x.numel() // K, K, x, n, widths, matrices, results)
    return outs
