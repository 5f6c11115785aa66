"""Small models of every registered part, for the parametrised tests."""

from __future__ import annotations

from typing import Any

import torch

from models.config import FFNConfig, MixerConfig, ModelConfig
from models.parts import parts_in

MIXERS = parts_in("models.mixers", MixerConfig)
FFNS = parts_in("models.ffns", FFNConfig)
PLACEMENTS = ("pre", "post", "sandwich", "postln")
QK_NORMS = ("none", "head", "full")
VOCAB = 40
_SIZES = {"n_heads": 4, "n_kv_heads": 2, "d_ff": 48}


def example(config_class: type, **changes: Any) -> dict[str, Any]:
    """Fields of a part: its kind and, for every required size, a small even number."""
    fields: dict[str, Any] = {}
    for name, field in config_class.model_fields.items():
        if name == "kind":
            fields[name] = field.annotation.__args__[0]
        elif field.is_required():
            fields[name] = _SIZES.get(name, 8)
    return {**fields, **changes}


LLAMA3 = {
    "kind": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
# Forms of a part that its required fields alone do not show.
VARIANTS: dict[str, dict[str, Any]] = {
    **{kind: example(part) for kind, part in MIXERS.items()},
    "mqa": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 1},
    "gqa_bias": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2, "bias": True},
    "mha_nope": {"kind": "mha", "n_heads": 4, "position": "nope"},
    "gqa_wide_heads": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 12},
    "mla_narrow_values": example(MIXERS["mla"], v_head_dim=6, kv_latent_dim=20),
    "mla_wide_values": example(MIXERS["mla"], v_head_dim=24, qk_nope_dim=4),
    "mla_query_latent": example(MIXERS["mla"], q_latent_dim=12),
    "mla_simple_nope": example(MIXERS["mla_simple"], position="nope"),
    "mla_yarn": example(MIXERS["mla"], rope_scaling={**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}),
    "gqa_nope": example(MIXERS["gqa"], position="nope"),
    "gqa_half_turned": example(MIXERS["gqa"], rotary_fraction=0.5, head_dim=12, rope_scaling=YARN),
    # `config_of` takes the convolution out too: it is the block's.
    "mha_short_conv": example(MIXERS["mha"], short_conv=3),
    "mla_short_conv": example(MIXERS["mla"], short_conv=4),
    "mha_llama3": example(MIXERS["mha"], rope_scaling=LLAMA3),
    # Layers that differ; `config_of` takes the pattern out.
    "window_then_nope": example(MIXERS["gqa"], mixer_pattern=[{"window": 5}, {"position": "nope"}]),
    "two_rotations": example(
        MIXERS["mha"], mixer_pattern=[{"window": 7}, {"rope_theta": 500.0, "rope_scaling": YARN}]
    ),
    "latent_then_grouped": example(MIXERS["mla"], mixer_pattern=[{}, example(MIXERS["gqa"], window=3)]),
    "grouped_then_simple": example(MIXERS["gqa"], mixer_pattern=[{}, example(MIXERS["mla_simple"])]),
}
PATTERNS = [name for name, mixer in VARIANTS.items() if "mixer_pattern" in mixer]


def config_of(mixer: dict[str, Any], **changes: Any) -> ModelConfig:
    """A two-layer model 32 wide around a mixer (or a `mixer_pattern` among its fields)."""
    fields = {
        "vocab_size": VOCAB,
        "d_model": 32,
        "n_layers": 2,
        "max_seq_len": 64,
        "mixer": {
            name: value for name, value in mixer.items() if name not in ("mixer_pattern", "short_conv")
        },
        "short_conv": mixer.get("short_conv"),
        "mixer_pattern": mixer.get("mixer_pattern"),
        "ffn": {"kind": "swiglu", "d_ff": 48},
        # Wide initial values: differences between positions are far above rounding.
        "init": {"std": 0.2},
    }
    return ModelConfig.model_validate({**fields, **changes})


def ids_of(batch: int, n_tokens: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (batch, n_tokens), generator=generator)
