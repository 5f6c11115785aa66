"""Latent attention in its simple form: one latent for all keys and values, no rotated part of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.linear import Linear, project
from models.mixers.base import AttentionConfig, Step, attend, in_order, remember
from models.norms import NormConfig, RMSNorm
from models.rope import rotate

if TYPE_CHECKING:
    from models.cache import LayerState


class MLASimpleConfig(AttentionConfig):
    """Latent attention, simple form: c = RMSNorm(W_c x), [k; v] = W_u c, full queries (after arXiv
    2405.04434).

    `position` "rope_on_expanded_k" rotates queries and expanded keys: the cache holds c and keys are expanded
    and rotated anew at every step. "nope" has no positions (order is lost but for causality) and decodes
    absorbed.
    """

    kind: Literal["mla_simple"]
    latent_dim: int = Field(gt=0)
    head_dim: int | None = Field(default=None, gt=0)
    position: Literal["rope_on_expanded_k", "nope"] = "rope_on_expanded_k"

    @model_validator(mode="after")
    def _pairs(self) -> MLASimpleConfig:
        if self.position != "nope" and self.head_dim is not None and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd, RoPE turns pairs; use {self.head_dim + 1}")
        return self

    def rotated_width(self, d_model: int) -> int:
        return 0 if self.position == "nope" else self.head_width(d_model)

    def build(self, d_model: int, norm: NormConfig) -> nn.Module:
        return SimpleLatentAttention(self, d_model, norm.eps)

    def _projections(self, d_model: int) -> int:
        width = self.n_heads * self.head_width(d_model)
        return 2 * d_model * width + self.latent_dim * (d_model + 2 * width)

    def n_params(self, d_model: int) -> int:
        norms = sum(self.qk_norm_widths(self.n_heads, self.n_heads, self.head_width(d_model)))
        return self._projections(d_model) + self.latent_dim + norms

    def flops_per_token(self, d_model: int, seq_len: int) -> float:
        pairs = self.flops_per_pair(d_model) * self.mean_visible_keys(seq_len)
        return 2 * self._projections(d_model) + pairs

    def state_shapes(self, d_model: int) -> tuple[tuple[int, ...], ...]:
        return ((self.latent_dim,),)

    def saved_elements(self, d_model: int) -> int:
        H, K = self.n_heads, self.head_width(d_model)
        n = 4 * H * K + H + 2 * self.latent_dim + 1  # q, expanded k and v, out; log-sum-exp; latent
        if self.position != "nope" or self.qk_norm != "none":
            n += H * K  # keys anew: rotated or normalised
        if self.qk_norm != "none":
            n += 2 * H * K + (2 * H if self.qk_norm == "head" else 2)  # what is normalised
        return n


class SimpleLatentAttention(nn.Module):
    """forward(x_BTD, step, state) -> y_BTD; the state holds the latent c alone."""

    def __init__(self, config: MLASimpleConfig, d_model: int, eps: float) -> None:
        super().__init__()
        self.config = config
        self.width = config.head_width(d_model)
        total = config.n_heads * self.width
        self.q = Linear(d_model, total, bias=False)
        self.kv_down = Linear(d_model, config.latent_dim, bias=False)
        self.latent_norm = RMSNorm(config.latent_dim, eps)
        self.kv_up = Linear(config.latent_dim, 2 * total, bias=False)
        self.o = Linear(total, d_model, bias=False)
        if config.qk_norm != "none":
            q_width, k_width = config.qk_norm_widths(config.n_heads, config.n_heads, self.width)
            self.q_norm, self.k_norm = RMSNorm(q_width, eps), RMSNorm(k_width, eps)

    def forward(self, x_BTD: Tensor, step: Step, state: LayerState | None = None) -> Tensor:
        config = self.config
        q_BTX, c_BTC = project(x_BTD, self.q, self.kv_down)
        q_BTHK = self._normed(q_BTX, "q_norm")
        if step.rotation is not None:
            q_BTHK = rotate(q_BTHK, step.rotation)
        c_BTC = self.latent_norm(c_BTC)
        ordered = config.position != "nope" or in_order(step)
        (c_BSC,) = remember(state, (c_BTC,), step, ordered)
        n_queries, n_keys = q_BTHK.shape[1], c_BSC.shape[1]
        if state is not None and self._absorbing_is_cheaper(n_queries, n_keys):
            return self._absorbed(q_BTHK, c_BSC, step)
        k_BSX, v_BSX = self.kv_up(c_BSC.to(c_BTC.dtype)).chunk(2, dim=-1)
        k_BSHK = self._normed(k_BSX, "k_norm")
        if step.rotation is not None:
            cos, signed_sin = (
                step.rotation if state is None or step.all_rotation is None else step.all_rotation
            )
            k_BSHK = rotate(k_BSHK, (cos[..., -n_keys:, :, :], signed_sin[..., -n_keys:, :, :]))
        v_BSHK = v_BSX.unflatten(-1, (config.n_heads, self.width))
        return self.o(attend(q_BTHK, k_BSHK, v_BSHK, step, config.window).flatten(-2))

    def _normed(self, x_BTX: Tensor, name: str) -> Tensor:
        """Split into heads, normalised before ("full") or after ("head") the split."""
        kind = self.config.qk_norm
        if kind == "full":
            x_BTX = getattr(self, name)(x_BTX)
        x_BTHK = x_BTX.unflatten(-1, (self.config.n_heads, self.width))
        return getattr(self, name)(x_BTHK) if kind == "head" else x_BTHK

    def _absorbing_is_cheaper(self, n_queries: int, n_keys: int) -> bool:
        """Compare multiply-adds a head; only position-free keys without a norm can be absorbed."""
        if self.config.position != "nope" or self.config.qk_norm != "none":
            return False
        C, K = self.config.latent_dim, self.width
        return n_queries * (n_keys * 2 * C + 2 * C * K) < n_keys * 2 * C * K + n_queries * n_keys * 2 * K

    def _absorbed(self, q_BTHK: Tensor, c_BSC: Tensor, step: Step) -> Tensor:
        up_k_HKC, up_v_HKC = self.kv_up.weight.unflatten(0, (2, self.config.n_heads, self.width)).unbind(0)
        qc_BTHC = torch.einsum("bthk,hkc->bthc", q_BTHK, up_k_HKC)
        c_BS1C = c_BSC.unsqueeze(2).to(qc_BTHC.dtype)
        out_BTHC = attend(qc_BTHC, c_BS1C, c_BS1C, step, self.config.window, self.width**-0.5)
        return self.o(torch.einsum("bthc,hkc->bthk", out_BTHC, up_v_HKC).flatten(-2))
