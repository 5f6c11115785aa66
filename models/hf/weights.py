"""Weights between our names and transformers': renamed, cut, and with rows in another order, bit for bit.

Shapes: K width of a head, R its part that rotates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.config import MixerConfig, ModelConfig
from models.hf.families import Family

_ATTENTION = {f"mixer.{x}": f"self_attn.{x}_proj" for x in "qkvo"}
_LATENT = {
    "mixer.kv_down": "self_attn.kv_a_proj_with_mqa",
    "mixer.latent_norm": "self_attn.kv_a_layernorm",
    "mixer.kv_up": "self_attn.kv_b_proj",
    "mixer.o": "self_attn.o_proj",
}
_DIRECT_QUERY = {"mixer.q": "self_attn.q_proj"}
_LATENT_QUERY = {
    "mixer.q_down": "self_attn.q_a_proj",
    "mixer.q_latent_norm": "self_attn.q_a_layernorm",
    "mixer.q": "self_attn.q_b_proj",
}
_GATED = {"ffn.gate": "mlp.gate_proj", "ffn.up": "mlp.up_proj", "ffn.down": "mlp.down_proj"}


class _Slot(NamedTuple):
    """One tensor of theirs: ours, one below the other; row i of ours is theirs' row `rows[i]`."""

    theirs: str
    ours: tuple[str, ...]
    rows: Tensor | None = None


def import_weights(config: ModelConfig, family: Family, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from theirs, in their dtype. Raises ValueError for tensors missing or left over."""
    slots = _slots(config, family)
    wanted = {slot.theirs for slot in slots}
    # A tied output matrix is the embedding again; rotary frequencies are recomputed.
    left_over = [
        name
        for name in weights
        if name not in wanted
        and not name.endswith("rotary_emb.inv_freq")
        and not (config.tie_embeddings and name == "lm_head.weight")
    ]
    for what, names in (("lack", sorted(wanted - weights.keys())), ("also hold", left_over)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(
                f"these are not the weights of a {family.model_class} of this config: they {what} "
                f"{', '.join(names[:4])}{more}"
            )
    if config.tie_embeddings:
        check_tied(weights, "model.embed_tokens.weight", "lm_head.weight")
    found: dict[str, Tensor] = {}
    for slot in slots:
        tensor = weights[slot.theirs]
        if slot.rows is not None:
            tensor = tensor[slot.rows.to(tensor.device)]
        found.update(zip(slot.ours, tensor.chunk(len(slot.ours)), strict=True))
    return found


def check_tied(weights: Mapping[str, Tensor], embedding: str, output: str) -> None:
    """Raise ValueError where a model that says its output matrix is the embedding holds another one beside it."""
    first, second = weights[embedding], weights.get(output, weights[embedding])
    if first.data_ptr() != second.data_ptr() and not torch.equal(first, second):
        raise ValueError(
            f"tie_word_embeddings is true, but {output} is not {embedding}: set tie_word_embeddings to false to keep "
            f"both, or remove {output}"
        )


def export_weights(config: ModelConfig, family: Family, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict from ours, in our dtype."""
    found: dict[str, Tensor] = {}
    for slot in _slots(config, family):
        tensor = (
            torch.cat([weights[name] for name in slot.ours]) if len(slot.ours) > 1 else weights[slot.ours[0]]
        )
        if slot.rows is not None:
            tensor = tensor[slot.rows.argsort().to(tensor.device)]
        found[slot.theirs] = tensor
    if config.tie_embeddings:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


def _slots(config: ModelConfig, family: Family) -> list[_Slot]:
    slots = [
        _Slot("model.embed_tokens.weight", ("embed.weight",)),
        _Slot("model.norm.weight", ("final_norm.weight",)),
    ]
    if not config.tie_embeddings:
        slots.append(_Slot("lm_head.weight", ("lm_head.weight",)))
    for i, mixer in enumerate(config.mixers):
        rows = _rows(config.d_model, mixer, family)
        for theirs, ours in _layer_names(mixer, family):
            names = tuple(f"layers.{i}.{name}.weight" for name in ours)
            slots.append(_Slot(f"model.layers.{i}.{theirs}.weight", names, rows.get(ours[0])))
        for name in _biased(mixer):
            ours = (f"layers.{i}.{name}.bias",)
            slots.append(_Slot(f"model.layers.{i}.{_ATTENTION[name]}.bias", ours, rows.get(name)))
    return slots


def _layer_names(mixer: Any, family: Family) -> list[tuple[str, tuple[str, ...]]]:
    if family.is_latent:
        names = {**(_DIRECT_QUERY if mixer.q_latent_dim is None else _LATENT_QUERY), **_LATENT}
    else:
        names = dict(_ATTENTION)
    if family.qk_norm != "none":
        names |= {f"mixer.{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
    names |= family.norm_names
    if family.has_fused_gate:
        fused = [("mlp.gate_up_proj", ("ffn.gate", "ffn.up")), ("mlp.down_proj", ("ffn.down",))]
        return [(theirs, (ours,)) for ours, theirs in names.items()] + fused
    return [(theirs, (ours,)) for ours, theirs in {**names, **_GATED}.items()]


def _biased(mixer: Any) -> tuple[str, ...]:
    bias = getattr(mixer, "bias", False)
    return tuple(_ATTENTION) if bias is True else tuple(f"mixer.{x}" for x in bias or "")


def _rows(d_model: int, mixer: MixerConfig, family: Family) -> dict[str, Tensor]:
    """Which rows of theirs ours are, for the matrices whose order differs."""
    m: Any = mixer
    rotary = mixer.rotary(d_model)
    if rotary is None or (not family.is_interleaved and rotary.turned == rotary.width):
        return {}
    head = head_order(rotary.width, rotary.turned, family.is_interleaved)
    if not family.is_latent:
        return {"mixer.q": _every_head(head, m.n_heads), "mixer.k": _every_head(head, m.n_groups)}
    kept, latent = torch.arange(m.qk_nope_dim), torch.arange(m.kv_latent_dim)
    return {
        "mixer.q": _every_head(torch.cat((kept, m.qk_nope_dim + head)), m.n_heads),
        "mixer.kv_down": torch.cat((latent, m.kv_latent_dim + head)),
    }


def head_order(width: int, turned: int, is_interleaved: bool) -> Tensor:
    """Component of theirs that component i of our head is, (K,).

    Ours turns pairs (i, i + K/2), the first R/2 of them; they turn the first R components, in pairs
    (2i, 2i + 1) if interleaved, else (i, i + R/2).
    """
    pairs = torch.arange(turned).view(-1, 2) if is_interleaved else torch.arange(turned).view(2, -1).t()
    still = torch.arange(turned, width).view(2, -1)
    return torch.cat((pairs[:, 0], still[0], pairs[:, 1], still[1]))


def _every_head(order: Tensor, n_heads: int) -> Tensor:
    return (order + len(order) * torch.arange(n_heads).unsqueeze(1)).flatten()
