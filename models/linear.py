"""Linear layers and embeddings: products of tokens with a matrix, alone or several that read the same input."""

from __future__ import annotations

from torch import Tensor, nn

from kernels.linear import linears


class Linear(nn.Linear):
    """nn.Linear; a few tokens (decoding) without bias or gradients go through a kernel that reads the matrix once."""

    def reset_parameters(self) -> None:
        """Nothing: `models.initialise` draws all values (and on "meta" torch would load its compiler for this)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.bias is not None else linears(x, self.weight)[0]


class Embedding(nn.Embedding):
    """nn.Embedding, its values drawn as `Linear`'s are."""

    def reset_parameters(self) -> None:
        """Nothing."""


def project(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """layer(x) of layers that read the same x (…, K), computed together where none has a bias.

    Layers that something watches or has replaced (hooks, adapters) are called one by one.
    """
    if all(is_plain(layer, Linear) and layer.bias is None for layer in layers):
        return linears(x, *(layer.weight for layer in layers))  # type: ignore[arg-type]
    return tuple(layer(x) for layer in layers)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module is `kind.forward` and nothing else: what a kernel may compute in its place."""
    return type(module) is kind and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or "forward" in module.__dict__
    )
