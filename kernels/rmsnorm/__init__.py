"""Root-mean-square normalisation over the last dimension."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels.rmsnorm import cpu, reference

BACKENDS = ("auto", "reference", "cpu", "torch")


def rms_norm(x: Tensor, weight_D: Tensor, eps: float = 1e-5, *, backend: str = "auto") -> Tensor:
    """x (…, D) normalised to root mean square 1, times weight_D; computed in at least fp32, in x's dtype.

    `backend`: "auto" ("cpu" for CPU tensors, else "torch", PyTorch's own, fused on CUDA) or a name of
    `BACKENDS`. Raises ValueError for others.
    """
    if backend not in BACKENDS:
        raise ValueError(f"rms_norm backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    if backend == "cpu" or (backend == "auto" and x.device.type == "cpu"):
        return cpu.rms_norm(x, weight_D, eps)
    if backend == "reference":
        return reference.rms_norm(x, weight_D, eps)
    return F.rms_norm(x, (x.shape[-1],), weight_D, eps).to(x.dtype)
