"""Cross entropy on CPUs by a kernel of our own (cpu.cpp): every row is read once and written once."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import native

TAKES = (
    "contiguous logits (C, V) in fp32 or bf16, whose own gradient is not asked for, and int64 or int32 targets (C), in "
    "the CPU's memory"
)


def takes(logits_CV: Tensor, targets_C: Tensor) -> bool:
    """Whether the kernel is there for such tensors."""
    if logits_CV.ndim != 2 or targets_C.shape != logits_CV.shape[:1] or not logits_CV.is_contiguous():
        return False
    if targets_C.dtype not in (torch.int64, torch.int32) or not native.in_memory(targets_C):
        return False
    return not (logits_CV.requires_grad and torch.is_grad_enabled()) and native.computes(logits_CV)


def cross_entropy_(logits_CV: Tensor, targets_C: Tensor, gradient: bool, ignored: int) -> Tensor:
    """Same contract as `reference.cross_entropy_`; the logits are contiguous.

    Raises ValueError for a target outside the vocabulary.
    """
    C, V = logits_CV.shape
    targets_C = targets_C.long().contiguous()
    outside = (targets_C != ignored) & ((targets_C < 0) | (targets_C >= V))
    if bool(outside.any()):
        raise ValueError(f"target {int(targets_C[outside][0])} is outside the vocabulary of {V}")
    nll_C = logits_CV.new_empty(C, dtype=torch.float32)
    bf16 = int(logits_CV.dtype == torch.bfloat16)
    native.call("cross_entropy", bf16, C, V, logits_CV, targets_C, ignored, nll_C, int(gradient))
    return nll_C
