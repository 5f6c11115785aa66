"""Normalisation layers. Shapes: … any leading dimensions, D width."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kernels.rmsnorm import rms_norm
from models.parts import Config


class RMSNorm(nn.Module):
    """x_…D / rms(x) * weight_D (arXiv 1910.07467); backward keeps x and one number a row."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return rms_norm(x, self.weight, self.eps, dtype=dtype)


def before_products(norm: nn.Module | None, x: Tensor) -> Tensor:
    """norm(x), or x, in the dtype that products are computed in here: autocast would cast it for each of them anew."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if isinstance(norm, RMSNorm):
        return norm(x, dtype)
    return (x if norm is None else norm(x)).to(dtype)


class NormConfig(Config):
    """Which normalisation the residual stream passes through; LayerNorm has a bias (arXiv 1607.06450)."""

    kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    eps: float = Field(default=1e-5, gt=0)

    def build(self, width: int) -> nn.Module:
        """The layer over the last dimension."""
        return RMSNorm(width, self.eps) if self.kind == "rmsnorm" else nn.LayerNorm(width, eps=self.eps)

    def n_params(self, width: int) -> int:
        """Weights, and for LayerNorm biases."""
        return width if self.kind == "rmsnorm" else 2 * width

    def saved_statistics(self) -> int:
        """Numbers a row kept for backward beside the input: 1/rms, or mean and 1/std."""
        return 1 if self.kind == "rmsnorm" else 2
