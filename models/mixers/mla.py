"""Multi-head latent attention of DeepSeek V2 and V3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.linear import Linear, project
from models.mixers.base import AttentionConfig, Step, attend, in_order, remember
from models.norms import NormConfig, RMSNorm
from models.rope import Rotary, rotate

if TYPE_CHECKING:
    from models.cache import LayerState

LATENT_EPS = 1e-6  # fixed in the published code, whatever the model's own eps


class MLAConfig(AttentionConfig):
    """Multi-head latent attention: keys and values from one cached latent, RoPE on a part of its own
    (2405.04434).

    `qk_norm` acts on the position-free parts; it forbids absorbed decoding (the norm of a key needs the key),
    so keys are expanded from the latent at every step.
    """

    kind: Literal["mla"]
    kv_latent_dim: int = Field(gt=0)
    qk_nope_dim: int = Field(gt=0)
    qk_rope_dim: int = Field(gt=0)
    v_head_dim: int = Field(gt=0)
    q_latent_dim: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _pairs(self) -> MLAConfig:
        if self.qk_rope_dim % 2:
            raise ValueError(
                f"qk_rope_dim={self.qk_rope_dim} is odd, RoPE turns pairs; use {self.qk_rope_dim + 1}"
            )
        return self

    def check(self, d_model: int) -> None:
        """Heads have widths of their own: every d_model fits."""

    def rotated_width(self, d_model: int) -> int:
        return self.qk_rope_dim

    def rotary(self, d_model: int) -> Rotary:
        return Rotary(self.qk_rope_dim, self.qk_rope_dim, self.rope_theta, self.rope_scaling)

    def build(self, d_model: int, norm: NormConfig) -> nn.Module:
        return LatentAttention(self, d_model, norm.eps)

    @property
    def qk_width(self) -> int:
        """Width of a query or key head: position-free and rotated part."""
        return self.qk_nope_dim + self.qk_rope_dim

    def _projections(self, d_model: int) -> int:
        """Weights of all matrices, which is also multiply-adds per token."""
        H, C, Q = self.n_heads, self.kv_latent_dim, self.q_latent_dim
        to_queries = d_model * H * self.qk_width if Q is None else Q * (d_model + H * self.qk_width)
        to_keys_values = d_model * (C + self.qk_rope_dim) + C * H * (self.qk_nope_dim + self.v_head_dim)
        return to_queries + to_keys_values + H * self.v_head_dim * d_model

    def n_params(self, d_model: int) -> int:
        norms = self.kv_latent_dim + (self.q_latent_dim or 0)
        return (
            self._projections(d_model)
            + norms
            + sum(self.qk_norm_widths(self.n_heads, self.n_heads, self.qk_nope_dim))
        )

    def flops_per_token(self, d_model: int, seq_len: int) -> float:
        pairs = self.flops_per_pair(d_model) * self.mean_visible_keys(seq_len)
        return 2 * self._projections(d_model) + pairs

    def flops_per_pair(self, d_model: int) -> float:
        return 2 * self.n_heads * (self.qk_width + self.v_head_dim)

    def state_shapes(self, d_model: int) -> tuple[tuple[int, ...], ...]:
        return ((self.kv_latent_dim + self.qk_rope_dim,),)

    def saved_elements(self, d_model: int) -> int:
        H, C, K, V, nope = self.n_heads, self.kv_latent_dim, self.qk_width, self.v_head_dim, self.qk_nope_dim
        n = 2 * H * K + H * V + H  # queries, keys, attention's output; log-sum-exp
        n += H * (nope + V)  # values are a view of the expansion, hence all of it
        n += 2 * C + 1  # latent before and after its norm
        n += 2 * (self.q_latent_dim or 0) + (self.q_latent_dim is not None)
        return n + self.qk_norm_saved(H, H, nope)


class LatentAttention(nn.Module):
    """forward(x_BTD, step, state) -> y_BTD. C latent, N position-free and R rotated width, V value width.

    Training expands keys and values from the latent. Decoding keeps (latent, rotated key) and, where it is
    cheaper, moves the expansion to the queries and the output: score = (W_UK^T q)·c + q_R·k_R, out = W_UV Σ a
    c (§2.1.2).
    """

    def __init__(self, config: MLAConfig, d_model: int, eps: float) -> None:
        super().__init__()
        self.config = config
        H, C, R = config.n_heads, config.kv_latent_dim, config.qk_rope_dim
        if config.q_latent_dim is None:
            self.q = Linear(d_model, H * config.qk_width, bias=False)
        else:
            self.q_down = Linear(d_model, config.q_latent_dim, bias=False)
            self.q_latent_norm = RMSNorm(config.q_latent_dim, LATENT_EPS)
            self.q = Linear(config.q_latent_dim, H * config.qk_width, bias=False)
        self.kv_down = Linear(d_model, C + R, bias=False)
        self.latent_norm = RMSNorm(C, LATENT_EPS)
        self.kv_up = Linear(C, H * (config.qk_nope_dim + config.v_head_dim), bias=False)
        self.o = Linear(H * config.v_head_dim, d_model, bias=False)
        if config.qk_norm != "none":
            q_width, k_width = config.qk_norm_widths(H, H, config.qk_nope_dim)
            self.q_norm, self.k_norm = RMSNorm(q_width, eps), RMSNorm(k_width, eps)
        self.scale = config.qk_width**-0.5
        if config.rope_scaling is not None:
            self.scale *= config.rope_scaling.score_scale

    def forward(self, x_BTD: Tensor, step: Step, state: LayerState | None = None) -> Tensor:
        config = self.config
        first = self.q if config.q_latent_dim is None else self.q_down
        q_BTX, kv_BTX = project(x_BTD, first, self.kv_down)
        if config.q_latent_dim is not None:
            q_BTX = self.q(self.q_latent_norm(q_BTX))
        q_BTHK = q_BTX.unflatten(-1, (config.n_heads, -1))
        qn_BTHN, qr_BTHR = q_BTHK.split((config.qk_nope_dim, config.qk_rope_dim), dim=-1)
        qn_BTHN = self._normed(qn_BTHN, "q_norm")
        c_BTC, kr_BTR = kv_BTX.split((config.kv_latent_dim, config.qk_rope_dim), dim=-1)
        c_BTC = self.latent_norm(c_BTC)
        kr_BT1R = kr_BTR.unsqueeze(2)
        if step.rotation is not None:
            qr_BTHR, kr_BT1R = rotate(qr_BTHR, step.rotation), rotate(kr_BT1R, step.rotation)
        if state is None:
            return self._expanded(qn_BTHN, qr_BTHR, c_BTC, kr_BT1R, step)
        memory = torch.cat((c_BTC, kr_BT1R.squeeze(2)), dim=-1)
        (memory_BSM,) = remember(state, (memory,), step, in_order(step))
        if self._absorbing_is_cheaper(q_BTHK.shape[1], memory_BSM.shape[1]):
            return self._absorbed(qn_BTHN, qr_BTHR, memory_BSM, step)
        c_BSC, kr_BSR = memory_BSM.split((config.kv_latent_dim, config.qk_rope_dim), dim=-1)
        return self._expanded(qn_BTHN, qr_BTHR, c_BSC.to(x_BTD.dtype), kr_BSR.unsqueeze(2), step)

    def _normed(self, x_BTHN: Tensor, name: str) -> Tensor:
        if self.config.qk_norm == "none":
            return x_BTHN
        norm = getattr(self, name)
        if self.config.qk_norm == "head":
            return norm(x_BTHN)
        return norm(x_BTHN.flatten(-2)).view(x_BTHN.shape)

    def _absorbing_is_cheaper(self, n_queries: int, n_keys: int) -> bool:
        """Compare multiply-adds a head: wide scores and outputs against expanding every remembered position."""
        config = self.config
        if config.qk_norm != "none":
            return False
        C, up = config.kv_latent_dim, config.qk_nope_dim + config.v_head_dim
        absorbed = n_queries * (n_keys * (2 * C + config.qk_rope_dim) + C * up)
        expanded = n_keys * C * up + n_queries * n_keys * (config.qk_width + config.v_head_dim)
        return absorbed < expanded

    def _expanded(
        self, qn_BTHN: Tensor, qr_BTHR: Tensor, c_BSC: Tensor, kr_BS1R: Tensor, step: Step
    ) -> Tensor:
        config = self.config
        kv = self.kv_up(c_BSC).unflatten(-1, (config.n_heads, -1))
        kn_BSHN, v_BSHV = kv.split((config.qk_nope_dim, config.v_head_dim), dim=-1)
        kn_BSHN = self._normed(kn_BSHN, "k_norm")
        kr_BSHR = kr_BS1R.to(kn_BSHN.dtype).expand(-1, -1, config.n_heads, -1)
        q = torch.cat((qn_BTHN, qr_BTHR), dim=-1)
        k = torch.cat((kn_BSHN, kr_BSHR), dim=-1)
        return self.o(attend(q, k, v_BSHV, step, config.window, self.scale).flatten(-2))

    def _absorbed(self, qn_BTHN: Tensor, qr_BTHR: Tensor, memory_BSM: Tensor, step: Step) -> Tensor:
        config = self.config
        up_HXC = self.kv_up.weight.unflatten(0, (config.n_heads, -1))
        up_k_HNC, up_v_HVC = up_HXC.split((config.qk_nope_dim, config.v_head_dim), dim=1)
        qc_BTHC = torch.einsum("bthn,hnc->bthc", qn_BTHN, up_k_HNC)
        q = torch.cat((qc_BTHC, qr_BTHR), dim=-1)
        keys_BS1M = memory_BSM.unsqueeze(2).to(q.dtype)
        values_BS1C = keys_BS1M[..., : config.kv_latent_dim]
        out_BTHC = attend(q, keys_BS1M, values_BS1C, step, config.window, self.scale)
        return self.o(torch.einsum("bthc,hvc->bthv", out_BTHC, up_v_HVC).flatten(-2))
