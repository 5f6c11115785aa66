"""Rotary position embedding of queries or keys."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import native
from kernels.rotary import cpu, reference

BACKENDS = ("auto", "reference", "cpu")


def rotary(x_BTHR: Tensor, cos: Tensor, signed_sin: Tensor, *, backend: str = "auto") -> Tensor:
    """x with each pair (i, i + R/2) turned by its position's angle; tables (T, 1, R) or (B, T, 1, R), see `reference`.

    `backend`: "auto" ("cpu", our own kernels, for CPU tensors they take, except under torch.compile; else
    "reference") or a name of `BACKENDS`. Raises ValueError for others, and for "cpu" with tensors it does not take.
    """
    if backend not in BACKENDS:
        raise ValueError(f"rotary backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    if backend == "reference" or (backend == "auto" and torch.compiler.is_compiling()):
        return reference.rotary(x_BTHR, cos, signed_sin)
    if cpu.takes(x_BTHR, cos, signed_sin):
        return cpu.rotary(x_BTHR, cos, signed_sin)
    if backend == "cpu":
        raise native.refusal("rotary", cpu.TAKES, x=x_BTHR, cos=cos, signed_sin=signed_sin)
    return reference.rotary(x_BTHR, cos, signed_sin)
