"""Which transformers class a `ModelConfig` is, and why it is not the others."""

from __future__ import annotations

from typing import Any

from models.config import MixerConfig, ModelConfig
from models.hf.families import FAMILIES, Family
from models.hf.writing import rotates
from models.parts import Config

# Fields that have a place in transformers' configs; any other one must stand at its default.
_MODEL = {
    "vocab_size", "d_model", "n_layers", "max_seq_len", "mixer", "mixer_pattern", "ffn", "norm", "norm_placement",
    "tie_embeddings", "init",
}  # fmt: skip
_GROUPED = {
    "kind", "n_heads", "n_kv_heads", "head_dim", "window", "qk_norm", "position", "rope_theta", "rope_scaling",
    "rotary_fraction", "bias",
}  # fmt: skip
_LATENT = {
    "kind", "n_heads", "kv_latent_dim", "qk_nope_dim", "qk_rope_dim", "v_head_dim", "q_latent_dim", "rope_theta",
    "rope_scaling",
}  # fmt: skip
_BY_LAYER = {"window", "position", "rope_theta", "rope_scaling", "rotary_fraction"}


def family_of(config: ModelConfig) -> Family | None:
    """The transformers class that is this architecture, or None."""
    return next((f for f in FAMILIES if not misfits(config, f)), None)


def why_none_fits(config: ModelConfig) -> str:
    """What stands against every class, in one sentence."""
    reasons = "; ".join(f"{f.model_class} ({', '.join(misfits(config, f))})" for f in FAMILIES)
    kinds = " and ".join(dict.fromkeys(m.kind for m in config.mixers))
    return (
        f"no transformers class for mixer {kinds}, ffn {config.ffn.kind}, {config.norm.kind} "
        f"{config.norm_placement}; what stands against each: {reasons}"
    )


def misfits(config: ModelConfig, family: Family) -> list[str]:
    """What of a config the family's class does not have; nothing: it is that class."""
    kinds = ("mla",) if family.is_latent else ("mha", "gqa")
    found = [f"mixer {m.kind}" for m in config.mixers if m.kind not in kinds]
    if found:
        return found[:1]
    found += _unusual(config, _MODEL)
    if config.ffn.kind != "swiglu":
        found.append(f"ffn {config.ffn.kind}")
    found += _unusual(config.ffn, {"kind", "d_ff"})
    if config.norm.kind != "rmsnorm":
        found.append(config.norm.kind)
    if config.norm_placement != family.norm_placement:
        found.append(f"norm_placement {config.norm_placement}")
    for mixer in dict.fromkeys(config.mixers):
        found += _unusual(mixer, _LATENT if family.is_latent else _GROUPED)
    if len({_common(m) for m in config.mixers}) > 1:
        found.append("layers that differ in more than window and positions")
    if not family.is_latent:
        found += _grouped_misfits(config, family)
    found += _rope_misfits(config, family)
    return list(dict.fromkeys(found))


def _unusual(part: Config, known: set[str]) -> list[str]:
    fields = type(part).model_fields
    return [
        f"{name}={getattr(part, name)}"
        for name in fields
        if name not in known and getattr(part, name) != fields[name].default
    ]


def _common(mixer: MixerConfig) -> str:
    return mixer.model_dump_json(exclude=_BY_LAYER)


def _grouped_misfits(config: ModelConfig, family: Family) -> list[str]:
    mixer: Any = config.mixers[0]
    found = [] if mixer.qk_norm == family.qk_norm else [f"qk_norm {mixer.qk_norm}"]
    if mixer.bias not in (False, family.bias):
        found.append(f"bias {mixer.bias}")
    if mixer.head_dim is not None and not family.has_head_dim:
        found.append(f"head_dim {mixer.head_dim}")
    elif family.heads_divide_width and config.d_model % mixer.n_heads:
        found.append(f"n_heads {mixer.n_heads} which does not divide d_model {config.d_model}")
    windows = {m.window for m in config.mixers}
    allowed = {"none": windows <= {None}, "all": len(windows) == 1, "listed": len(windows - {None}) <= 1}
    if not allowed[family.windows]:
        found.append(f"windows {', '.join(sorted(map(str, windows)))}")
    return found + _position_misfits(config, family)


def _position_misfits(config: ModelConfig, family: Family) -> list[str]:
    turning = [rotates(m) for m in config.mixers]
    if family.positions == "listed":
        return []
    windowed = [m.window is not None for m in config.mixers]
    wanted = windowed if family.positions == "windowed" and any(windowed) else [True] * len(turning)
    return [] if turning == wanted else ["position nope"]


def _rope_misfits(config: ModelConfig, family: Family) -> list[str]:
    turning: list[Any] = [m for m in config.mixers if rotates(m)]
    if not family.is_partial and any(getattr(m, "rotary_fraction", 1.0) != 1.0 for m in turning):
        return ["rotary_fraction"]
    ropes = {
        (
            family.rope_by_layer_type and m.window is None,
            m.rope_theta,
            m.rope_scaling,
            getattr(m, "rotary_fraction", 1),
        )
        for m in turning
    }
    if len(ropes) > len({by_type for by_type, *_ in ropes}):
        return ["rope_theta or rope_scaling that differ between layers"]
    scalings = [m.rope_scaling for m in turning]
    if family.rope_by_layer_type and any(getattr(s, "truncate", True) is False for s in scalings):
        return ["rope_scaling.truncate=False"]
    return []
