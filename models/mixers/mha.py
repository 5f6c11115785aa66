"""Multi-head attention."""

from __future__ import annotations

from typing import Literal

from torch import nn

from models.mixers.base import GroupedHeads
from models.mixers.gqa import GroupedAttention
from models.norms import NormConfig


class MHAConfig(GroupedHeads):
    """Multi-head attention: every query head has its own keys and values (arXiv 1706.03762)."""

    kind: Literal["mha"]

    def build(self, d_model: int, norm: NormConfig) -> nn.Module:
        return GroupedAttention(self, d_model, norm.eps)
