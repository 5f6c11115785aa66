"""Grouped-query attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor, nn

from models.linear import Linear, project
from models.mixers.base import GroupedHeads, Step, attend, in_order, remember
from models.norms import NormConfig, RMSNorm
from models.rope import rotate

if TYPE_CHECKING:
    from models.cache import LayerState


class GQAConfig(GroupedHeads):
    """Grouped-query attention: query heads share key/value heads (arXiv 2305.13245); 1 is multi-query
    (1911.02150).
    """

    kind: Literal["gqa"]
    n_kv_heads: int = Field(gt=0)

    @property
    def n_groups(self) -> int:
        return self.n_kv_heads

    def build(self, d_model: int, norm: NormConfig) -> nn.Module:
        return GroupedAttention(self, d_model, norm.eps)


class GroupedAttention(nn.Module):
    """Softmax attention, with RoPE or without: forward(x_BTD, step, state) -> y_BTD. Query head h reads group h // (H /
    G).
    """

    SHARES_ROWS = True

    def __init__(self, config: GroupedHeads, d_model: int, eps: float) -> None:
        super().__init__()
        self.n_heads, self.n_groups, self.width = config.n_heads, config.n_groups, config.head_width(d_model)
        self.window, self.qk_norm = config.window, config.qk_norm
        self.q = Linear(d_model, self.n_heads * self.width, bias=bool(config.bias))
        self.k = Linear(d_model, self.n_groups * self.width, bias=bool(config.bias))
        self.v = Linear(d_model, self.n_groups * self.width, bias=bool(config.bias))
        self.o = Linear(self.n_heads * self.width, d_model, bias=config.bias is True)
        if self.qk_norm != "none":
            q_width, k_width = config.qk_norm_widths(self.n_heads, self.n_groups, self.width)
            self.q_norm, self.k_norm = RMSNorm(q_width, eps), RMSNorm(k_width, eps)

    def forward(self, x_BTD: Tensor, step: Step, state: LayerState | None = None) -> Tensor:
        q, k, v = project(x_BTD, self.q, self.k, self.v)
        if self.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (x.unflatten(-1, (-1, self.width)) for x in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if step.shared is not None:
            q, k, v = (step.shared.spread(x) for x in (q, k, v))
        if step.rotation is not None:
            q, k = rotate(q, step.rotation), rotate(k, step.rotation)
        k, v = remember(state, (k, v), step, in_order(step))
        out_BTX = attend(q, k, v, step, self.window).flatten(-2)
        return self.o(out_BTX if step.shared is None else step.shared.line(out_BTX))
