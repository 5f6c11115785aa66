"""Weights from and to Hugging Face `transformers`, where the same architecture exists there.

`from_hf` and `to_hf` keep every weight bit for bit; logits agree to rounding (1e-5 in fp32). transformers is
imported only when a model is exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import CausalLM, uninitialised
from models.hf_bert import BERT_CLASSES, bert_from_hf, bert_to_hf

_LAYER_NAMES = {
    "mixer.q": "self_attn.q_proj",
    "mixer.k": "self_attn.k_proj",
    "mixer.v": "self_attn.v_proj",
    "mixer.o": "self_attn.o_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
_PRE_NORMS = {"mixer_norm_in": "input_layernorm", "ffn_norm_in": "post_attention_layernorm"}
_POST_NORMS = {"mixer_norm_out": "post_attention_layernorm", "ffn_norm_out": "post_feedforward_layernorm"}


@dataclass(frozen=True)
class _Family:
    """A transformers class and what of ours it is."""

    model_class: str
    config_class: str
    norm_placement: str
    qk_norm: str
    has_head_dim: bool

    def layer_names(self) -> dict[str, str]:
        norms = _PRE_NORMS if self.norm_placement == "pre" else _POST_NORMS
        qk = {} if self.qk_norm == "none" else {f"mixer.{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
        return {**_LAYER_NAMES, **norms, **qk}

    def describe(self) -> str:
        return f"{self.model_class} (norm_placement {self.norm_placement}, qk_norm {self.qk_norm})"


_FAMILIES = (
    _Family("LlamaForCausalLM", "LlamaConfig", "pre", "none", True),
    _Family("Qwen3ForCausalLM", "Qwen3Config", "pre", "head", True),
    _Family("Olmo2ForCausalLM", "Olmo2Config", "post", "full", False),
)


def _convertible() -> str:
    return "; ".join([*(f.describe() for f in _FAMILIES), *BERT_CLASSES])


def from_hf(hf_model: Any) -> Any:
    """Our model with the weights of a `transformers` model (SmolLM and Llama, Qwen3, OLMo 2; BERT), same dtype and
    device: a `CausalLM`, or what `bert_from_hf` makes.

    Raises ValueError for other architectures, and for settings that ours does not have, each named.
    """
    name = type(hf_model).__name__
    if name in BERT_CLASSES:
        return bert_from_hf(hf_model)
    family = next((f for f in _FAMILIES if f.model_class == name), None)
    if family is None:
        raise ValueError(f"{name} cannot be converted; these can: {_convertible()}")
    config = _config_from_hf(hf_model.config, family)
    source = hf_model.state_dict()
    weight = source["model.embed_tokens.weight"]
    model: CausalLM = uninitialised(config, weight.device).to(weight.dtype)
    names = _weight_names(config, family)
    model.load_state_dict({ours: source[theirs] for ours, theirs in names.items()}, strict=True)
    return model.train(hf_model.training)


def to_hf(model: Any) -> Any:
    """The same model as a `transformers` one, with copied weights, same dtype and device.

    Raises ValueError when transformers has no such architecture, listing what it has.
    """
    if not model.config.causal:
        return bert_to_hf(model)
    import transformers

    config = model.config
    family = _family_of(config)
    hf_config = getattr(transformers, family.config_class)(**_config_to_hf(config, family))
    hf_model = getattr(transformers, family.model_class)(hf_config)
    source: dict[str, Tensor] = model.state_dict()
    weights = {theirs: source[ours] for ours, theirs in _weight_names(config, family).items()}
    if config.tie_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weight = model.embed.weight
    hf_model.to(device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        hf_model.load_state_dict(weights, strict=True)
    return hf_model.train(model.training)


def _weight_names(config: ModelConfig, family: _Family) -> dict[str, str]:
    """Our parameter names → theirs."""
    names = {"embed.weight": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight"}
    if not config.tie_embeddings:
        names["lm_head.weight"] = "lm_head.weight"
    for i in range(config.n_layers):
        for ours, theirs in family.layer_names().items():
            names[f"layers.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"
    return names


def _config_from_hf(hf: Any, family: _Family) -> ModelConfig:
    _refuse_unknown_settings(hf, family)
    n_kv_heads = hf.num_key_value_heads
    mixer: dict[str, Any] = {
        "kind": "mha" if n_kv_heads == hf.num_attention_heads else "gqa",
        "n_heads": hf.num_attention_heads,
        "rope_theta": float(hf.rope_parameters["rope_theta"]),
        "qk_norm": family.qk_norm,
    }
    if mixer["kind"] == "gqa":
        mixer["n_kv_heads"] = n_kv_heads
    if family.has_head_dim and hf.head_dim * hf.num_attention_heads != hf.hidden_size:
        mixer["head_dim"] = hf.head_dim
    return ModelConfig.model_validate(
        {
            "vocab_size": hf.vocab_size,
            "d_model": hf.hidden_size,
            "n_layers": hf.num_hidden_layers,
            "max_seq_len": hf.max_position_embeddings,
            "mixer": mixer,
            "ffn": {"kind": "swiglu", "d_ff": hf.intermediate_size},
            "norm": {"kind": "rmsnorm", "eps": hf.rms_norm_eps},
            "norm_placement": family.norm_placement,
            "tie_embeddings": hf.tie_word_embeddings,
            "init": {"std": hf.initializer_range},
        }
    )


def _refuse_unknown_settings(hf: Any, family: _Family) -> None:
    wanted = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0}
    problems = [
        f"{key}={getattr(hf, key)!r} (only {value!r})"
        for key, value in wanted.items()
        if getattr(hf, key, value) != value
    ]
    rope = {k: v for k, v in hf.rope_parameters.items() if v is not None and k != "rope_theta"}
    if rope.pop("rope_type", "default") != "default" or rope:
        problems.append(f"rope_parameters={hf.rope_parameters!r} (only rope_type 'default' with rope_theta)")
    if any(kind != "full_attention" for kind in getattr(hf, "layer_types", None) or ()):
        problems.append("layer_types with sliding windows (only full_attention)")
    if problems:
        raise ValueError(
            f"this {family.model_class} cannot be converted, it has settings ours lacks: "
            + "; ".join(problems)
        )


def _family_of(config: ModelConfig) -> _Family:
    mixer: Any = config.mixer
    plain = mixer.kind in ("mha", "gqa") and config.ffn.kind == "swiglu" and config.norm.kind == "rmsnorm"
    bare = config.positions == "none" and not config.embedding_norm
    rotated = plain and mixer.position == "rope" and not mixer.bias
    if rotated and bare and mixer.window is None:
        own_width = mixer.head_dim is not None
        divides = config.d_model % mixer.n_heads == 0  # transformers' Llama asks for it even with a head_dim
        for family in _FAMILIES:
            fits = family.norm_placement == config.norm_placement and family.qk_norm == mixer.qk_norm
            if fits and (not own_width or (family.has_head_dim and (divides or family.qk_norm == "head"))):
                return family
    raise ValueError(
        f"no transformers class for mixer {mixer.kind} (window {mixer.window}, head_dim "
        f"{getattr(mixer, 'head_dim', None)}, qk_norm {getattr(mixer, 'qk_norm', 'none')}, position "
        f"{getattr(mixer, 'position', 'rope')}, bias {getattr(mixer, 'bias', False)}), positions {config.positions}, "
        f"embedding_norm {config.embedding_norm}, ffn {config.ffn.kind}, {config.norm.kind} "
        f"{config.norm_placement}; what converts: mha or gqa without window and bias, rotated, swiglu, rmsnorm, as "
        f"{_convertible()}"
    )


def _config_to_hf(config: ModelConfig, family: _Family) -> dict[str, Any]:
    mixer: Any = config.mixer
    std = config.d_model**-0.5 if config.init.std is None else config.init.std
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.ffn.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": mixer.n_heads,
        "num_key_value_heads": mixer.n_groups,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": mixer.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": std,
        # Ids of special tokens belong to the tokenizer; the classes' defaults may lie outside a small vocabulary.
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family.has_head_dim:
        fields["head_dim"] = mixer.head_width(config.d_model)
    return fields
