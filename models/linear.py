"""Linear layers: products of a text's tokens with a matrix, alone or several that read the same input."""

from __future__ import annotations

from torch import Tensor, nn

from kernels.linear import linears


class Linear(nn.Linear):
    """nn.Linear; a few tokens (decoding) without bias or gradients go through a kernel that reads the matrix once."""

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self)[0]


def project(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """layer(x) of layers that read the same x (…, K), computed together where none has a bias."""
    if any(layer.bias is not None for layer in layers):
        return tuple(nn.Linear.forward(layer, x) for layer in layers)
    return linears(x, *(layer.weight for layer in layers))
