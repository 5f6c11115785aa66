"""Our `ModelConfig` as settings of a transformers class."""

from __future__ import annotations

from typing import Any

from models.config import MixerConfig, ModelConfig
from models.hf.families import FULL, SLIDING, Family


def settings_of(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The fields of the family's config class, for a config that fits it (`fitting.misfits`)."""
    mixer: Any = config.mixers[0]
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.ffn.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": mixer.n_heads,
        "num_key_value_heads": mixer.n_heads if family.is_latent else mixer.n_groups,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm.eps,
        "rope_parameters": _rope_parameters(config, family),
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.d_model**-0.5 if config.init.std is None else config.init.std,
        # Ids of special tokens belong to the tokenizer; the classes' defaults may lie outside a small vocabulary.
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family.has_head_dim:
        fields["head_dim"] = mixer.head_width(config.d_model)
    if "attention_bias" in family.defaults:  # true by default in some
        fields["attention_bias"] = bool(getattr(mixer, "bias", False))
    if family.is_latent:
        fields |= _latent_fields(config, mixer)
    return fields | _window_fields(config, family)


def _latent_fields(config: ModelConfig, mixer: Any) -> dict[str, Any]:
    return {
        "kv_lora_rank": mixer.kv_latent_dim,
        "q_lora_rank": mixer.q_latent_dim,
        "qk_nope_head_dim": mixer.qk_nope_dim,
        "qk_rope_head_dim": mixer.qk_rope_dim,
        "v_head_dim": mixer.v_head_dim,
        "rope_interleave": True,
        "first_k_dense_replace": config.n_layers,
        "n_group": 1,
        "topk_group": 1,
    }


def _window_fields(config: ModelConfig, family: Family) -> dict[str, Any]:
    window = next((m.window for m in config.mixers if m.window is not None), None)
    if family.windows == "none":
        return {}
    fields: dict[str, Any] = {"sliding_window": window}
    if family.windows == "listed":
        # Said for every layer: what the classes would make up differs, and EXAONE 4's divides by zero.
        fields["layer_types"] = [_layer_type(m) for m in config.mixers]
    if family.window_switch:
        fields["use_sliding_window"] = window is not None
    if family.positions == "listed":
        fields["no_rope_layers"] = [int(rotates(m)) for m in config.mixers]
    return fields


def _layer_type(mixer: MixerConfig) -> str:
    return FULL if mixer.window is None else SLIDING


def rotates(mixer: MixerConfig) -> bool:
    """Whether a mixer has rotary positions."""
    return getattr(mixer, "position", "rope") != "nope"


def _rope_parameters(config: ModelConfig, family: Family) -> dict[str, Any]:
    turning = {_layer_type(m): m for m in config.mixers if rotates(m)}
    any_of_them = next(iter(turning.values()), None)
    if not family.rope_by_layer_type:
        rope = _rope(any_of_them)
        if family.is_partial:  # half by default, so said also where it is the whole
            rope["partial_rotary_factor"] = getattr(any_of_them, "rotary_fraction", 1.0)
        return rope
    return {kind: _rope(turning.get(kind, any_of_them)) for kind in (FULL, SLIDING)}


def _rope(mixer: Any) -> dict[str, Any]:
    if mixer is None:  # no layer rotates
        return {"rope_type": "default", "rope_theta": 10000.0}
    fields = {"rope_type": "default", "rope_theta": mixer.rope_theta}
    if mixer.rope_scaling is not None:
        scaling = mixer.rope_scaling.model_dump(exclude_none=True)
        fields |= {"rope_type": scaling.pop("kind"), **scaling}
    return fields
