"""Low-rank adaptation: matrices stay as they are, and a product of two small ones is trained beside each.

Hu et al. 2021, arXiv 2106.09685, eq. 3: h = W x + (alpha / r) B A x, with A (r, K) drawn and B (out, r) zero, so that
the model begins as it was. K: a matrix's inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decoder import draw_by_name
from models.linear import Linear
from models.residual import Block
from models.trunk import Trunk

# Matrices whose values a mixer reads beside multiplying with them: what is beside them would be passed over.
READ_DIRECTLY = ("kv_up",)


class LoRALinear(nn.Module):
    """A linear layer that stays as it is, and its low-rank addition."""

    def __init__(self, base: Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        weight = base.weight
        self.a = nn.Parameter(torch.empty(rank, base.in_features, dtype=weight.dtype, device=weight.device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=weight.dtype, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = F.linear(F.linear(x, self.a), self.b)
        return torch.add(self.base(x), added, alpha=self.scale)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The plain layer that does the same."""
        self.base.weight.add_(self.b @ self.a, alpha=self.scale)
        return self.base


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
    """Freeze a model's trunk and put a low-rank addition on its layers' matrices of the names `targets`, in place.

    What stands on the trunk (a readout) stays trainable. A is drawn as `models.build` draws, by name, with deviation
    K^-1/2. Raises ValueError for a name that none of the matrices has, or that cannot have one.
    """
    known = adaptable(model)
    if unknown := [name for name in targets if name not in known]:
        raise ValueError(f"no matrix of the model is called {unknown[0]!r}; there are {', '.join(known)}")
    for module in model.modules():
        if isinstance(module, Trunk):
            module.requires_grad_(False)
    for block in _blocks(model):
        for name, part, child in _linears(block):
            if name in targets:
                setattr(part, name, LoRALinear(child, rank, alpha))
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear) and not module.a.is_meta:
            draw_by_name(module.a, seed, f"{name}.a", module.base.in_features**-0.5)


def merge_lora(model: nn.Module) -> None:
    """Add what was trained beside the matrices to them, in place: a plain model again."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())


def adaptable(model: nn.Module) -> list[str]:
    """The names of the matrices in a model's layers that can have an addition."""
    found = {name: None for block in _blocks(model) for name, _, _ in _linears(block)}
    return [name for name in found if name not in READ_DIRECTLY]


def _blocks(model: nn.Module) -> list[Block]:
    return [m for m in model.modules() if isinstance(m, Block)]


def _linears(block: Block) -> list[tuple[str, nn.Module, Linear]]:
    """Every matrix of a layer: its name, the module it belongs to, and itself."""
    return [
        (name, part, child)
        for part in block.modules()
        for name, child in part.named_children()
        if type(child) is Linear
    ]
