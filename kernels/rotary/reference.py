"""Rotary positions, written out: the definition the other backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(x_BTHR: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """x * cos + roll(x, R/2) * signed_sin (arXiv 2104.09864 eq. 34, rotate-half); keeps nothing of x for backward."""
    if not cos.dtype == signed_sin.dtype == x_BTHR.dtype:  # autocast: projections are bf16, the tables fp32
        cos, signed_sin = cos.to(x_BTHR.dtype), signed_sin.to(x_BTHR.dtype)
    return torch.addcmul(x_BTHR * cos, x_BTHR.roll(x_BTHR.shape[-1] // 2, -1), signed_sin)
