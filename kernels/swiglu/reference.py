"""The gated unit of SwiGLU, written out: the definition the other backends are held to."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202 eq. 6)."""
    return F.silu(gate) * up
