"""Products of few rows on CPUs by a kernel of our own (cpu.cpp): every matrix is read once, sums are in fp32."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels import native

MOST_ROWS = 8


TAKES = (
    f"x (…, K) of 1 to {MOST_ROWS} rows and contiguous weights (N, K) of its dtype, fp32 or bf16, in the CPU's memory, "
    "without gradients"
)


def takes(x: Tensor, weights: tuple[Tensor, ...]) -> bool:
    """Whether the kernel is there for such tensors."""
    K = x.shape[-1] if x.ndim else 0
    if not 0 < x.numel() <= MOST_ROWS * K:
        return False
    for w in weights:
        if w.dtype != x.dtype or w.ndim != 2 or w.shape[1] != K or not w.is_contiguous():
            return False
    if torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights)):
        return False
    return native.computes(x, *weights)


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
