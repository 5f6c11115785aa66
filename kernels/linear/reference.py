"""Products of one input with several matrices, written out: the definition the other backends are held to."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linears(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """x @ W^T for every W."""
    return tuple(F.linear(x, w) for w in weights)
