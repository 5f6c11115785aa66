"""What every sequence mixer declares: its fields' checks, its layer, its costs.

Shapes: B batch, T queries, S keys, D model width, H query heads, G key/value heads, K query/key width a head,
V value width a head, R rotated width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from kernels.attention import attention, reference
from models.parts import Part, divisors_in_words
from models.rope import Rotary
from models.rope_scaling import RopeScaling

if TYPE_CHECKING:
    from models.cache import LayerState
    from models.norms import NormConfig
    from models.rope import Rotation
    from models.shared_rows import SharedRows

# What a layer without positions has no use for.
ROPE_FIELDS = ("rope_theta", "rope_scaling", "rotary_fraction")


@dataclass
class Step:
    """What one forward pass tells every mixer: where its tokens stand, what is padding, what was asked for.

    `causal`: no token sees a later one (else all see all, or within a window all on both sides).
    `rotation` is RoPE's for the T new tokens, `all_rotation` for all positions so far; None where nothing
    rotates. `attentions` collects weights_BHTS when they were asked for. `shared`: the mixer's input is a line of
    distinct tokens, (1, N, D), which stand in these rows; only a mixer that says `SHARES_ROWS` is given one.
    """

    start: int = 0
    causal: bool = True
    rotation: Rotation | None = None
    all_rotation: Rotation | None = None
    key_mask_BS: Tensor | None = None
    attentions: list[Tensor] | None = field(default=None)
    shared: SharedRows | None = None


class MixerConfig(Part):
    """Base of every mixer's config.

    `CAUSAL_ONLY`: the mixer cannot let a token see later ones, so no encoder has it.
    """

    CAUSAL_ONLY: ClassVar[bool] = True
    window: int | None = Field(default=None, gt=0)

    @abstractmethod
    def build(self, d_model: int, norm: NormConfig) -> nn.Module:
        """One layer's module: forward(x_BTD, step, state=None) -> y_BTD."""

    @abstractmethod
    def n_params(self, d_model: int) -> int:
        """Parameters of one layer."""

    @abstractmethod
    def flops_per_token(self, d_model: int, seq_len: int) -> float:
        """Forward FLOPs of one layer and token (a multiply-add is 2), averaged over the positions of a text."""

    @abstractmethod
    def state_shapes(self, d_model: int) -> tuple[tuple[int, ...], ...]:
        """Shapes, per token, of the tensors one layer remembers while decoding."""

    @abstractmethod
    def saved_elements(self, d_model: int) -> int:
        """Numbers per token that one layer's backward keeps beside the layer's input."""

    def check(self, d_model: int) -> None:
        """Raise ValueError if the fields do not fit the width."""

    def rotated_width(self, d_model: int) -> int:
        """Components per head that RoPE turns; 0: no RoPE."""
        return 0

    def flops_per_pair(self, d_model: int) -> float:
        """Of `flops_per_token`, what one layer spends on each token that a token sees; 0 where it forms no pairs."""
        return 0.0

    def rotary(self, d_model: int) -> Rotary | None:
        """How the layer rotates queries and keys; None: it does not."""
        return None

    def n_slots(self, seq_len: int) -> int:
        """Positions remembered after `seq_len` tokens: all, or the window's."""
        return seq_len if self.window is None else min(seq_len, self.window)

    def state_bytes(self, d_model: int, seq_len: int, dtype_bytes: int = 2) -> int:
        """Bytes one layer remembers of one text of `seq_len` tokens."""
        n_elements = 0
        for shape in self.state_shapes(d_model):
            n = 1
            for size in shape:
                n *= size
            n_elements += n
        return self.n_slots(seq_len) * n_elements * dtype_bytes

    def mean_visible_keys(self, seq_len: int) -> float:
        """Keys a query sees, averaged over a text: causal, within the window."""
        width = self.n_slots(seq_len)
        return (width * (width + 1) / 2 + (seq_len - width) * width) / seq_len


class AttentionConfig(MixerConfig):
    """Fields common to softmax attention: heads, RoPE, sliding window, normalisation of queries and keys.

    `window` W: a token sees W keys, itself included (None: all). `qk_norm`: RMSNorm of queries and keys
    before RoPE, per head with shared weights ("head": Qwen3, arXiv 2505.09388) or over all heads at once
    ("full": OLMo 2, arXiv 2501.00656). `rope_scaling`: frequencies for texts longer than those of
    training.
    """

    CAUSAL_ONLY: ClassVar[bool] = False
    REVISION: ClassVar[int] = 2  # kernels of our own on CPUs

    n_heads: int = Field(gt=0, le=1 << 16)
    rope_theta: float = Field(default=10000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    qk_norm: Literal["none", "head", "full"] = "none"

    def head_width(self, d_model: int) -> int:
        """K: width of one head."""
        head_dim: int | None = getattr(self, "head_dim", None)
        return d_model // self.n_heads if head_dim is None else head_dim

    @model_validator(mode="after")
    def _rope_settings_are_used(self) -> AttentionConfig:
        if getattr(self, "position", "rope") != "nope":
            return self
        fields = type(self).model_fields
        for name in ROPE_FIELDS:
            if name in fields and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} has no effect with position='nope'; leave it out")
        return self

    def rotated_width(self, d_model: int) -> int:
        return self.head_width(d_model)

    def flops_per_pair(self, d_model: int) -> float:
        return 4 * self.n_heads * self.head_width(d_model)

    def rotary(self, d_model: int) -> Rotary | None:
        turned = self.rotated_width(d_model)
        if not turned:
            return None
        return Rotary(self.head_width(d_model), turned, self.rope_theta, self.rope_scaling)

    def check(self, d_model: int) -> None:
        if getattr(self, "head_dim", None) is None and d_model % self.n_heads:
            raise ValueError(
                f"mixer.n_heads={self.n_heads} does not divide d_model={d_model}; "
                f"use {divisors_in_words(d_model, self.n_heads)}, or set mixer.head_dim"
            )
        if self.rotated_width(d_model) and self.head_width(d_model) % 2:
            raise ValueError(
                f"mixer.head_dim={self.head_width(d_model)} is odd, RoPE turns pairs: make d_model / n_heads "
                "even, or set an even mixer.head_dim"
            )

    def qk_norm_widths(self, n_query: int, n_key: int, width: int) -> tuple[int, int]:
        """Weights of the query and key norms for that many heads of that width."""
        if self.qk_norm == "none":
            return 0, 0
        return (width, width) if self.qk_norm == "head" else (n_query * width, n_key * width)

    def qk_norm_saved(self, n_query: int, n_key: int, width: int) -> int:
        """Numbers per token the two norms keep: their inputs and 1/rms."""
        if self.qk_norm == "none":
            return 0
        return (n_query + n_key) * width + (n_query + n_key if self.qk_norm == "head" else 2)


class GroupedHeads(AttentionConfig):
    """Attention whose query heads may share key/value heads.

    `position` "nope": no rotary positions (arXiv 2305.19466). `rotary_fraction`: the part of each head that
    turns (GLM-4: half; see `models.rope` for which). `bias`: of all four projections (BERT, GPT-2), or of "qkv" alone
    (Qwen 2, GLM-4-9B).
    """

    head_dim: int | None = Field(default=None, gt=0)
    position: Literal["rope", "nope"] = "rope"
    rotary_fraction: float = Field(default=1.0, gt=0, le=1)
    bias: bool | Literal["qkv"] = False

    @property
    def n_groups(self) -> int:
        """G: key/value heads."""
        return self.n_heads

    @model_validator(mode="after")
    def _heads_group(self) -> GroupedHeads:
        if self.n_heads % self.n_groups:
            raise ValueError(
                f"n_heads={self.n_heads} is not divisible by n_kv_heads={self.n_groups}; "
                f"use {divisors_in_words(self.n_heads, self.n_groups)}"
            )
        if self.head_dim is not None and self.head_dim % 2 and self.position == "rope":
            raise ValueError(f"head_dim={self.head_dim} is odd, RoPE turns pairs; use {self.head_dim + 1}")
        return self

    def rotated_width(self, d_model: int) -> int:
        return 0 if self.position == "nope" else int(self.head_width(d_model) * self.rotary_fraction)

    def check(self, d_model: int) -> None:
        super().check(d_model)
        turned, width = self.rotated_width(d_model), self.head_width(d_model)
        if self.position == "rope" and (turned < 2 or turned % 2):
            raise ValueError(
                f"mixer.rotary_fraction={self.rotary_fraction} turns {turned} of {width} components of a head, "
                f"RoPE turns pairs: use {max(2, turned + turned % 2) / width:g}, or leave it out"
            )

    def n_params(self, d_model: int) -> int:
        K, H, G = self.head_width(d_model), self.n_heads, self.n_groups
        biases = (K * (H + 2 * G) if self.bias else 0) + (d_model if self.bias is True else 0)
        return 2 * d_model * K * (H + G) + biases + sum(self.qk_norm_widths(H, G, K))

    def flops_per_token(self, d_model: int, seq_len: int) -> float:
        K, H, G = self.head_width(d_model), self.n_heads, self.n_groups
        return 4 * d_model * K * (H + G) + self.flops_per_pair(d_model) * self.mean_visible_keys(seq_len)

    def state_shapes(self, d_model: int) -> tuple[tuple[int, ...], ...]:
        return ((self.n_groups, self.head_width(d_model)),) * 2

    def saved_elements(self, d_model: int) -> int:
        K, H, G = self.head_width(d_model), self.n_heads, self.n_groups
        return 2 * (H + G) * K + H + self.qk_norm_saved(H, G, K)  # q, k, v, out; log-sum-exp


def attend(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGV: Tensor,
    step: Step,
    window: int | None,
    scale: float | None = None,
) -> Tensor:
    """Attention over tensors with heads third, as projections and the cache have them: out_BTHV."""
    q, k, v = q_BTHK.transpose(1, 2), k_BSGK.transpose(1, 2), v_BSGV.transpose(1, 2)
    mask_BS = step.key_mask_BS
    if mask_BS is not None and mask_BS.shape[1] != k.shape[2]:
        mask_BS = mask_BS[:, -k.shape[2] :]
    how: dict[str, Any] = {"causal": step.causal, "window": window, "key_mask_BS": mask_BS, "scale": scale}
    if step.attentions is None:
        return attention(q, k, v, **how).transpose(1, 2)
    out, weights = reference.attention(q, k, v, **how)
    step.attentions.append(weights)
    return out.transpose(1, 2)


def in_order(step: Step) -> bool:
    """Whether keys must come in order of position: where padding is masked or weights are shown."""
    return step.key_mask_BS is not None or step.attentions is not None


def remember(
    state: LayerState | None, new: tuple[Tensor, ...], step: Step, ordered: bool
) -> tuple[Tensor, ...]:
    """All tensors the new tokens may see: the new ones alone without a state, else with what it holds."""
    return new if state is None else state.append(new, step.start, ordered)
