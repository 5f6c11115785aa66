"""Two-layer feed-forward network with GELU."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.ffns.base import FFNConfig
from models.linear import Linear


class GELUConfig(FFNConfig):
    """GELU network: down(gelu(up(x))) (arXiv 1606.08415); exact, or GPT-2's tanh form; biases optional."""

    kind: Literal["gelu"]
    approximate: Literal["none", "tanh"] = "none"
    bias: bool = False

    def build(self, d_model: int) -> nn.Module:
        return GELUNetwork(self, d_model)

    def n_params(self, d_model: int) -> int:
        return 2 * d_model * self.d_ff + (d_model + self.d_ff if self.bias else 0)

    def flops_per_token(self, d_model: int) -> float:
        return 4 * d_model * self.d_ff

    def saved_elements(self, d_model: int) -> int:
        return 2 * self.d_ff  # before and after the nonlinearity

    def transient_elements(self, d_model: int) -> int:
        return self.d_ff


class GELUNetwork(nn.Module):
    """forward(x_BTD) -> y_BTD."""

    def __init__(self, config: GELUConfig, d_model: int) -> None:
        super().__init__()
        self.approximate = config.approximate
        self.up = Linear(d_model, config.d_ff, bias=config.bias)
        self.down = Linear(config.d_ff, d_model, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTD), approximate=self.approximate))
