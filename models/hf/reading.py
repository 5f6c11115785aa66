"""A config.json of transformers read as our `ModelConfig`; what ours lacks is refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from models.config import ModelConfig
from models.hf.checking import in_one_line
from models.hf.families import FAMILIES, FULL, SLIDING, Family, Settings, rotating_layers

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Settings which ours has at one value only.
_WANTED = {"hidden_act": "silu", "mlp_bias": False, "attention_dropout": 0.0, "is_causal": True}
# Settings of tokenizers, of other tasks, of how a model is run, or that published files carry for another class:
# none of them changes a logit. (Qwen's `max_window_layers` is among its defaults.)
_INDIFFERENT = {
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "id2label", "is_llama_config", "label2id", "max_window_layers", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "return_dict", "torch_dtype",
    "transformers.js_config", "transformers_version", "use_cache",
}  # fmt: skip
# What experts are like says nothing where no layer has any; the further-token heads are a model of their own.
_OF_EXPERTS = {
    "aux_loss_alpha", "ep_size", "moe_intermediate_size", "moe_layer_freq", "n_group", "n_routed_experts",
    "n_shared_experts", "norm_topk_prob", "num_experts_per_tok", "num_nextn_predict_layers",
    "output_router_logits", "routed_scaling_factor", "scoring_func", "seq_aux", "topk_group", "topk_method",
    "head_dim", "qk_head_dim", "num_mtp_layers",
}  # fmt: skip
_ROPE = {"rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"}
_SCALINGS = ("linear", "llama3", "yarn")
# What a setting must be, where it is not null.
_COUNTS = {
    *_SIZES, "num_key_value_heads", "max_position_embeddings", "head_dim", "sliding_window", "kv_lora_rank",
    "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "no_rope_layer_interval",
}  # fmt: skip
_NUMBERS = {"rms_norm_eps", "rope_theta", "initializer_range", "partial_rotary_factor", "attention_dropout"}
_SWITCHES = {"tie_word_embeddings", "use_sliding_window", "rope_interleave", "attention_bias", "mlp_bias"}
_LISTS = {"layer_types", "no_rope_layers"}
_NEVER_NULL = {"max_position_embeddings", "rms_norm_eps", "rope_theta", "initializer_range"}


class _Refused(ValueError):
    """A setting that ours lacks."""


def family_in(hf: Settings) -> Family:
    """The family a config.json is of, with the layout of its weights as the config has it.

    Raises ValueError for another `model_type`, or an architecture that is not the causal language model.
    """
    family = next((f for f in FAMILIES if f.model_type == hf.get("model_type")), None)
    classes = hf.get("architectures") or ()
    if family is None or (classes and family.model_class not in classes):
        known = ", ".join(f"{f.model_type} ({f.model_class})" for f in FAMILIES)
        raise ValueError(
            f"model_type {hf.get('model_type')!r} with architectures {list(classes)} cannot be converted; "
            f"these can: {known}"
        )
    is_asked = "rope_interleave" not in family.defaults or bool(hf.get("rope_interleave", True))
    return replace(family, is_interleaved=family.is_interleaved and is_asked)


def convert_config(hf: Settings) -> ModelConfig:
    """Our config from the dict in a config.json (of transformers 4 or 5).

    Raises ValueError for a family that ours is not, and for settings that ours does not have, each named.
    """
    family = family_in(hf)
    if missing := [name for name in _SIZES if hf.get(name) is None]:
        raise ValueError(f"this config.json of a {family.model_class} lacks {', '.join(missing)}")
    settings = {**family.defaults, **hf}
    if settings.get("hidden_act") == "swish":  # another name for it
        settings["hidden_act"] = "silu"
    if mistyped := list(_mistyped(settings)):
        raise ValueError(f"this config.json of a {family.model_class} is damaged: {'; '.join(mistyped)}")
    problems = list(_unknown(settings, family))
    mixers: list[dict[str, Any]] = []
    try:
        mixers = _mixers(settings, family)
    except _Refused as error:
        problems.append(str(error))
    if problems:
        raise ValueError(
            f"this {family.model_class} cannot be converted, it has settings ours lacks: "
            + "; ".join(problems)
        )
    period = _shortest_period(mixers)
    try:
        return _model_config(settings, family, mixers[:period])
    except ValidationError as error:
        raise ValueError(f"this {family.model_class} cannot be converted: {in_one_line(error)}") from None


def _model_config(settings: Settings, family: Family, mixers: list[dict[str, Any]]) -> ModelConfig:
    """`mixers`: of the layers, as far as they do not repeat."""
    return ModelConfig.model_validate(
        {
            "vocab_size": settings["vocab_size"],
            "d_model": settings["hidden_size"],
            "n_layers": settings["num_hidden_layers"],
            "max_seq_len": settings["max_position_embeddings"],
            "mixer": mixers[0],
            "mixer_pattern": None if len(mixers) == 1 else mixers,
            "ffn": {"kind": "swiglu", "d_ff": settings["intermediate_size"]},
            "norm": {"kind": "rmsnorm", "eps": settings["rms_norm_eps"]},
            "norm_placement": family.norm_placement,
            "tie_embeddings": settings["tie_word_embeddings"],
            "init": {"std": settings["initializer_range"]},
        }
    )


def _mistyped(settings: Settings) -> Iterator[str]:
    """Settings of another type than their place takes: what reads them below would stumble."""
    for name, value in settings.items():
        if value is None:
            if name in _NEVER_NULL:
                yield f"{name}=None (only a number)"
        elif name in _COUNTS:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                yield f"{name}={value!r} (only a whole number of at least 1)"
        elif name in _NUMBERS:
            if not _is_number(value):
                yield f"{name}={value!r} (only a number)"
        elif name in _SWITCHES:
            if not isinstance(value, bool):
                yield f"{name}={value!r} (only true or false)"
        elif name in _LISTS and not isinstance(value, list | tuple):
            yield f"{name}={value!r} (only a list)"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unknown(settings: Settings, family: Family) -> Iterator[str]:
    wanted = dict(_WANTED)
    if not family.bias:
        wanted["attention_bias"] = False
    if family.is_interleaved and "rope_interleave" not in family.defaults:
        wanted["rope_interleave"] = True  # the class does not know the setting
    known = {*_SIZES, *_INDIFFERENT, *_ROPE, *family.defaults}
    if family.is_latent:
        known |= _OF_EXPERTS
    for name, value in settings.items():
        if name in wanted:
            if value != wanted[name]:
                yield f"{name}={value!r} (only {wanted[name]!r})"
        elif name not in known and value not in (None, False, "", [], {}):
            yield f"{name}={value!r} (unknown)"


def _mixers(hf: Settings, family: Family) -> list[dict[str, Any]]:
    n_layers = hf["num_hidden_layers"]
    common = _latent_mixer(hf) if family.is_latent else _grouped_mixer(hf, family)
    types = _layer_types(hf, family, n_layers)
    ropes = _ropes(hf, family)
    rotates = [True] * n_layers
    if family.positions == "listed":
        rotates = rotating_layers(hf, n_layers)
    elif family.positions == "windowed" and hf["sliding_window"] is not None:
        rotates = [kind == SLIDING for kind in types]
    if len(rotates) < n_layers:
        raise _Refused(f"no_rope_layers with {len(rotates)} entries for {n_layers} layers")
    found = []
    for kind, turns in zip(types, rotates, strict=True):
        mixer = {**common, **(ropes[kind] if turns else {"position": "nope"})}
        if kind == SLIDING:
            mixer["window"] = hf["sliding_window"]
        found.append(mixer)
    return found


def _grouped_mixer(hf: Settings, family: Family) -> dict[str, Any]:
    n_heads, n_groups = hf["num_attention_heads"], hf["num_key_value_heads"]
    mixer: dict[str, Any] = {"kind": "mha", "n_heads": n_heads, "qk_norm": family.qk_norm}
    if n_groups is not None and n_groups != n_heads:
        mixer |= {"kind": "gqa", "n_kv_heads": n_groups}
    head_dim = hf.get("head_dim") if family.has_head_dim else None
    if head_dim is not None and head_dim * n_heads != hf["hidden_size"]:
        mixer["head_dim"] = head_dim
    if hf.get("attention_bias"):
        mixer["bias"] = family.bias
    return mixer


def _latent_mixer(hf: Settings) -> dict[str, Any]:
    n_layers, n_dense, n_heads = (
        hf["num_hidden_layers"],
        hf["first_k_dense_replace"],
        hf["num_attention_heads"],
    )
    if n_dense < n_layers:
        raise _Refused(f"first_k_dense_replace={n_dense} for {n_layers} layers (only dense layers)")
    if hf["num_key_value_heads"] not in (None, n_heads):
        raise _Refused(
            f"num_key_value_heads={hf['num_key_value_heads']} (only num_attention_heads={n_heads})"
        )
    return {
        "kind": "mla",
        "n_heads": n_heads,
        "kv_latent_dim": hf["kv_lora_rank"],
        "q_latent_dim": hf["q_lora_rank"],
        "qk_nope_dim": hf["qk_nope_head_dim"],
        "qk_rope_dim": hf["qk_rope_head_dim"],
        "v_head_dim": hf["v_head_dim"],
    }


def _layer_types(hf: Settings, family: Family, n_layers: int) -> list[str]:
    if family.windows == "none":
        return [FULL] * n_layers
    if family.windows == "all":
        return [FULL if hf["sliding_window"] is None else SLIDING] * n_layers
    assert family.layer_types is not None
    types = list(hf["layer_types"] or family.layer_types(hf, n_layers))[:n_layers]
    if len(types) < n_layers or not set(types) <= {FULL, SLIDING}:
        raise _Refused(
            f"layer_types={sorted(set(types))} of {len(types)} layers (only {FULL} and {SLIDING}, "
            f"one for each of {n_layers})"
        )
    switched_off = family.window_switch and not hf["use_sliding_window"]
    if SLIDING in types and (switched_off or hf["sliding_window"] is None):
        what = "use_sliding_window false" if switched_off else "sliding_window null"
        raise _Refused(f"layer_types with {SLIDING} beside {what}")
    return types


def _ropes(hf: Settings, family: Family) -> dict[str, dict[str, Any]]:
    """Rotary fields of the layers of each type; transformers 4 had `rope_theta` and `rope_scaling` instead."""
    given = hf.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise _Refused(f"rope_parameters={given!r} (only a mapping)")
    old = hf.get("rope_scaling") or {}
    if not family.rope_by_layer_type:
        rope = _rope(old or given, hf, family)
        return {FULL: rope, SLIDING: rope}
    if flat := {k: v for k, v in given.items() if k not in (FULL, SLIDING)}:
        raise _Refused(f"rope_parameters={flat!r} (ignored by this class: one mapping for each layer type)")
    if hf["rope_theta"] != family.defaults["rope_theta"] or "type" in old:
        # 5.23 rotates windowed layers by the default theta then, and takes a scaling's `type` for none; 4 did not.
        what = f"rope_theta={hf['rope_theta']}" if "type" not in old else f"rope_scaling={dict(old)!r}"
        raise _Refused(
            f"{what} (read differently by transformers 4 and 5: use rope_parameters by layer type)"
        )
    full = {**(given.get(FULL) or {}), **old}
    return {FULL: _rope(full, hf, family), SLIDING: _rope(given.get(SLIDING) or {}, hf, family)}


def _rope(given: Settings, hf: Settings, family: Family) -> dict[str, Any]:
    rest = {name: value for name, value in given.items() if value is not None}
    kind = rest.pop("rope_type", rest.pop("type", "default"))
    rest.pop("type", None)
    theta = rest.pop("rope_theta", hf["rope_theta"])
    fraction = rest.pop("partial_rotary_factor", hf.get("partial_rotary_factor") or 1.0)
    original = rest.get("original_max_position_embeddings", 1)
    if not all(map(_is_number, (theta, fraction, original))) or original <= 0:
        raise _Refused(f"rope_parameters={dict(given)!r} (only numbers, and the positions at least 1)")
    if fraction != 1.0 and not family.is_partial:
        raise _Refused(f"partial_rotary_factor={fraction} (only 1.0)")
    found: dict[str, Any] = {"rope_theta": float(theta)}
    if fraction != 1.0:
        found["rotary_fraction"] = fraction
    if kind == "default":
        if rest:
            raise _Refused(f"rope_parameters={dict(given)!r} (only rope_theta with rope_type 'default')")
    elif kind in _SCALINGS:
        found["rope_scaling"] = _scaling(kind, rest, hf, family)
    else:
        raise _Refused(f"rope_type={kind!r} (only default, {', '.join(_SCALINGS)})")
    return found


def _scaling(kind: str, fields: dict[str, Any], hf: Settings, family: Family) -> dict[str, Any]:
    if kind != "linear":
        longest = hf["max_position_embeddings"]
        fields.setdefault("original_max_position_embeddings", longest)
        if kind == "yarn":
            fields.setdefault("factor", longest / fields["original_max_position_embeddings"])
    if family.rope_by_layer_type and fields.get("truncate") is False:
        raise _Refused("truncate=False (ignored by this class)")
    return {"kind": kind, **fields}


def _shortest_period(layers: list[dict[str, Any]]) -> int:
    return next(p for p in range(1, len(layers) + 1) if layers[p:] == layers[:-p])
