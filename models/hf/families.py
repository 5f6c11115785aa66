"""The causal decoders of transformers that ours is: what each class means, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FULL, SLIDING = "full_attention", "sliding_attention"

_PRE = {"mixer_norm_in": "input_layernorm", "ffn_norm_in": "post_attention_layernorm"}
_POST = {"mixer_norm_out": "post_attention_layernorm", "ffn_norm_out": "post_feedforward_layernorm"}
_SANDWICH = {
    "mixer_norm_in": "input_layernorm",
    "mixer_norm_out": "post_self_attn_layernorm",
    "ffn_norm_in": "post_attention_layernorm",
    "ffn_norm_out": "post_mlp_layernorm",
}
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A transformers class and what of ours it is.

    `windows`: no layer has one, "all" have, or `layer_types` lists those that have ("listed";
    `window_switch`: only with `use_sliding_window`). `positions`: which layers rotate: "all", those that
    `no_rope_layers` lists (there, 1 means *rotates*), or "windowed" ones where there is a window at all.
    `bias`: what `attention_bias` adds, of which projections (`GroupedHeads.bias`; False: nothing of ours).
    `layer_types`: what the class makes of a config without them. `defaults`: the class's values of what a
    config.json may leave out.
    """

    model_type: str
    name: str
    norm_placement: Literal["pre", "post", "sandwich"]
    qk_norm: Literal["none", "head", "full"] = "none"
    is_latent: bool = False
    has_head_dim: bool = False
    heads_divide_width: bool = True
    windows: Literal["none", "all", "listed"] = "none"
    window_switch: bool = False
    positions: Literal["all", "listed", "windowed"] = "all"
    rope_by_layer_type: bool = False
    is_partial: bool = False
    is_interleaved: bool = False
    has_fused_gate: bool = False
    bias: bool | Literal["qkv"] = False
    layer_types: Callable[[Settings, int], list[str]] | None = None
    defaults: Settings = field(default_factory=dict)

    @property
    def model_class(self) -> str:
        """The class's name in transformers."""
        return f"{self.name}ForCausalLM"

    @property
    def config_class(self) -> str:
        """Its config's name."""
        return f"{self.name}Config"

    @property
    def norm_names(self) -> dict[str, str]:
        """Our norms of a layer -> theirs."""
        return {"pre": _PRE, "post": _POST, "sandwich": _SANDWICH}[self.norm_placement]


def _qwen3_types(hf: Settings, n_layers: int) -> list[str]:
    windowed = hf["use_sliding_window"] and hf["sliding_window"] is not None
    return [SLIDING if windowed and i >= hf["max_window_layers"] else FULL for i in range(n_layers)]


def _smollm3_types(hf: Settings, n_layers: int) -> list[str]:
    windowed = hf["use_sliding_window"] and hf["sliding_window"] is not None
    return [SLIDING if windowed and not r else FULL for r in rotating_layers(hf, n_layers)]


def _olmo3_types(hf: Settings, n_layers: int) -> list[str]:
    return [FULL if (i + 1) % 4 == 0 else SLIDING for i in range(n_layers)]


def _exaone4_types(hf: Settings, n_layers: int) -> list[str]:
    pattern = hf["sliding_window_pattern"]
    if hf["sliding_window"] is None or not pattern:
        return [FULL] * n_layers
    if isinstance(pattern, str):  # "LLLG": local, global
        return [FULL if pattern[i % len(pattern)] == "G" else SLIDING for i in range(n_layers)]
    return [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(n_layers)]


def rotating_layers(hf: Settings, n_layers: int) -> list[bool]:
    """SmolLM3's layers with rotary positions: `no_rope_layers` says 1 where there *are* some."""
    listed = hf["no_rope_layers"]
    if listed is not None:
        return [bool(x) for x in listed[:n_layers]]
    return [(i + 1) % hf["no_rope_layer_interval"] != 0 for i in range(n_layers)]


_COMMON = {
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
}
_BIASES = {"attention_bias": False, "mlp_bias": False}

FAMILIES = (
    Family(
        "llama", "Llama", "pre", has_head_dim=True, bias=True,
        defaults={**_COMMON, **_BIASES, "head_dim": None},
    ),
    Family(
        "mistral", "Mistral", "pre", has_head_dim=True, heads_divide_width=False, windows="all",
        defaults={
            **_COMMON, "head_dim": None, "num_key_value_heads": 8, "sliding_window": 4096,
            "max_position_embeddings": 4096 * 32,
        },
    ),
    Family(
        "smollm3", "SmolLM3", "pre", windows="listed", window_switch=True, positions="listed",
        layer_types=_smollm3_types, bias=True,
        defaults={
            **_COMMON, **_BIASES, "num_key_value_heads": 4, "max_position_embeddings": 32768,
            "tie_word_embeddings": True, "rope_theta": 2000000.0, "use_sliding_window": False,
            "sliding_window": None, "no_rope_layers": None, "no_rope_layer_interval": 4, "layer_types": None,
        },
    ),
    Family(
        "qwen3", "Qwen3", "pre", "head", has_head_dim=True, heads_divide_width=False, windows="listed",
        window_switch=True, layer_types=_qwen3_types, bias=True,
        defaults={
            **_COMMON, "attention_bias": False, "head_dim": 128, "num_key_value_heads": 32,
            "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096,
            "max_window_layers": 28, "layer_types": None,
        },
    ),
    Family(
        "olmo2", "Olmo2", "post", "full", bias=True,
        defaults={**_COMMON, "attention_bias": False, "rms_norm_eps": 1e-5},
    ),
    Family(
        "olmo3", "Olmo3", "post", "full", windows="listed", rope_by_layer_type=True, layer_types=_olmo3_types,
        bias=True,
        defaults={
            **_COMMON, "attention_bias": False, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "sliding_window": 4096, "layer_types": None,
        },
    ),
    Family(
        "exaone4", "Exaone4", "post", "head", has_head_dim=True, heads_divide_width=False, windows="listed",
        positions="windowed", layer_types=_exaone4_types,
        defaults={
            **_COMMON, "num_key_value_heads": 32, "rms_norm_eps": 1e-5, "head_dim": None,
            "sliding_window": 4096, "sliding_window_pattern": 4, "layer_types": None,
        },
    ),
    Family(
        "glm4", "Glm4", "sandwich", has_head_dim=True, heads_divide_width=False, is_partial=True,
        is_interleaved=True, has_fused_gate=True, bias="qkv",
        defaults={
            **_COMMON, "attention_bias": True, "head_dim": 128, "num_key_value_heads": 2,
            "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-07, "partial_rotary_factor": 0.5,
        },
    ),
    Family(
        "deepseek_v3", "DeepseekV3", "pre", is_latent=True, is_interleaved=True,
        defaults={
            **_COMMON, "attention_bias": False, "num_key_value_heads": 128, "max_position_embeddings": 4096,
            "first_k_dense_replace": 3, "rope_interleave": True, "q_lora_rank": 1536, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        },
    ),
)  # fmt: skip
