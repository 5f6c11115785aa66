"""Gated feed-forward layer with SiLU."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from kernels.swiglu import swiglu
from models.ffns.base import FFNConfig
from models.linear import Linear, project


class SwiGLUConfig(FFNConfig):
    """SwiGLU: down(silu(gate(x)) * up(x)), no biases (arXiv 2002.05202 eq. 6)."""

    kind: Literal["swiglu"]

    REVISION: ClassVar[int] = 2  # a kernel of our own on CPUs

    def build(self, d_model: int) -> nn.Module:
        return SwiGLU(d_model, self.d_ff)

    def n_params(self, d_model: int) -> int:
        return 3 * d_model * self.d_ff

    def flops_per_token(self, d_model: int) -> float:
        return 2 * self.n_params(d_model)

    def saved_elements(self, d_model: int) -> int:
        return 3 * self.d_ff  # gate, up, their product

    def transient_elements(self, d_model: int) -> int:
        return 3 * self.d_ff  # gradients of the product and of both factors


class SwiGLU(nn.Module):
    """forward(x_BTD) -> y_BTD."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = Linear(d_model, d_ff, bias=False)
        self.up = Linear(d_model, d_ff, bias=False)
        self.down = Linear(d_ff, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(swiglu(*project(x_BTD, self.gate, self.up)))
