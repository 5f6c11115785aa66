"""Root-mean-square normalisation over the last dimension."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import native
from kernels.rmsnorm import cpu, reference

BACKENDS = ("auto", "reference", "cpu", "torch")


def rms_norm(
    x: Tensor, weight_D: Tensor, eps: float = 1e-5, *, dtype: torch.dtype | None = None, backend: str = "auto"
) -> Tensor:
    """x (…, D) normalised to root mean square 1, times weight_D; computed in at least fp32, in `dtype` (x's).

    `backend`: "auto" (under torch.compile, which fuses it, "reference"; else "cpu", our own kernels, for CPU tensors
    they take, and "torch", PyTorch's, elsewhere) or a name of `BACKENDS`. Raises ValueError for others, and for "cpu"
    with tensors it does not take.
    """
    if backend not in BACKENDS:
        raise ValueError(f"rms_norm backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    dtype = x.dtype if dtype is None else dtype
    if backend == "reference" or (backend == "auto" and torch.compiler.is_compiling()):
        return reference.rms_norm(x, weight_D, eps, dtype)
    if backend != "torch" and cpu.takes(x, weight_D, dtype):
        return cpu.rms_norm(x, weight_D, eps, dtype)
    if backend == "cpu":
        raise native.refusal("rms_norm", cpu.TAKES, x=x, weight=weight_D)
    # One dtype for both: PyTorch's fused form takes no other.
    wide = torch.promote_types(x.dtype, weight_D.dtype)
    return F.rms_norm(x.to(wide), x.shape[-1:], weight_D.to(wide), eps).to(dtype)
