"""Root-mean-square normalisation, written out: the definition the other backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """The tensor in the dtype statistics are computed in: at least 32 bits."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """y = x / sqrt(mean(x²) + eps) * weight over the last dimension, in `dtype` (1910.07467 eq. 4)."""
    x_wide = wide(x)
    rstd = torch.rsqrt(x_wide.square().mean(dim=-1, keepdim=True) + eps)
    return (x_wide * rstd * wide(weight_D)).to(dtype)
