"""Cross entropy on CPUs by a kernel of our own (cpu.cpp): every row is read once and written once."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import native


def takes(logits_CV: Tensor) -> bool:
    """Whether the kernel is there for such logits."""
    return logits_CV.is_contiguous() and native.computes(logits_CV)


def cross_entropy_(logits_CV: Tensor, targets_C: Tensor, gradient: bool, ignored: int) -> Tensor:
    """Same contract as `reference.cross_entropy_`; the logits are contiguous.

    Raises ValueError for a target outside the vocabulary.
    """
    C, V = logits_CV.shape
    targets_C = targets_C.long().contiguous()
    outside = (targets_C != ignored) & ((targets_C < 0) | (targets_C >= V))
    if bool(outside.any()):
        raise ValueError(f"target {int(targets_C[outside][0])} is outside the vocabulary of {V}")
    nll_C = torch.empty(C)
    bf16 = int(logits_CV.dtype == torch.bfloat16)
    native.call("cross_entropy", bf16, C, V, logits_CV, targets_C, ignored, nll_C, int(gradient))
    return nll_C
