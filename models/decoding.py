"""Decoding one text token by token: the whole model in one call where its layers are the common ones.

Called operator by operator, a small model's layers take longer to start than to compute.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kernels import native
from kernels.decode import FIELDS, decode_token
from models.cache import Cache, LayerState
from models.decoder import CausalLM
from models.ffns.swiglu import SwiGLU
from models.linear import Embedding, Linear, is_plain
from models.mixers.gqa import GroupedAttention
from models.norms import RMSNorm
from models.residual import Block
from models.rope import RotaryTable

_KINDS = {
    CausalLM, Block, GroupedAttention, SwiGLU, RMSNorm, Linear, RotaryTable, nn.Linear, Embedding, nn.ModuleList,
}  # fmt: skip
_QK_NORMS = {"none": 0, "head": 1, "full": 2}


class TokenStep:
    """The next token's logits of the text in `cache`: same as `model(ids, cache=cache)`, to rounding."""

    def __init__(self, model: CausalLM, cache: Cache) -> None:
        self.model, self.cache = model, cache
        rows = []
        for layer, state, place in zip(model.layers, cache.layers, model.rope_of, strict=True):
            assert isinstance(layer, Block)
            rows.append(_fields(layer, state, None if place is None else model.ropes[place]))
        self.layers_LF = torch.tensor([[row[name] for name in FIELDS] for row in rows], dtype=torch.int64)

    @staticmethod
    def of(model: CausalLM, cache: Cache) -> TokenStep | None:
        """A step for this model and cache, or None where the model is not of the kind, or not to be bypassed."""
        return TokenStep(model, cache) if _fits(model, cache) else None

    def __call__(self, token: int) -> Tensor:
        """logits_N after one more token. The cache has room for it."""
        model, cache = self.model, self.cache
        norm = _weight(model.final_norm)
        logits_N = decode_token(
            self.layers_LF,
            cache.n_tokens,
            model.config.norm.eps,
            model.embed.weight[token],
            norm,
            model.lm_head_weight,
        )
        cache.n_tokens += 1
        return logits_N


def _fits(model: CausalLM, cache: Cache) -> bool:
    weight = model.embed.weight
    if type(model) is not CausalLM or cache.batch_size != 1 or cache.key_mask_BS is not None:
        return False
    if (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled(weight.device.type)
        or not native.computes(weight)
    ):
        return False
    if any(x is not None for x in (model.embedding_norm, model.token_type_embed, model.position_embed)):
        return False
    parameters = [*model.parameters(), *(x for state in cache.layers for x in state.tensors)]
    if any(p.dtype != weight.dtype or p.device != weight.device or not p.is_contiguous() for p in parameters):
        return False
    return all(map(_is_common, model.modules()))


def _is_common(module: nn.Module) -> bool:
    """Whether a module computes what the kernel does, and nothing watches or has replaced it."""
    is_biased = isinstance(module, nn.Linear) and module.bias is not None
    return type(module) in _KINDS and is_plain(module, type(module)) and not is_biased


def _fields(layer: Block, state: LayerState, rope: Any) -> dict[str, int]:
    mixer: Any = layer.mixer
    ffn: Any = layer.ffn
    has_norms = mixer.qk_norm != "none"
    tensors: dict[str, Tensor | None] = {
        "norm_in": _weight(layer.mixer_norm_in),
        **{name: getattr(mixer, name).weight for name in "qkvo"},
        "q_norm": mixer.q_norm.weight if has_norms else None,
        "k_norm": mixer.k_norm.weight if has_norms else None,
        "norm_out": _weight(layer.mixer_norm_out),
        "ffn_norm_in": _weight(layer.ffn_norm_in),
        **{name: getattr(ffn, name).weight for name in ("gate", "up", "down")},
        "ffn_norm_out": _weight(layer.ffn_norm_out),
        "keys": state.tensors[0],
        "values": state.tensors[1],
        "cosine": None if rope is None else rope.cos,
        "sine": None if rope is None else rope.signed_sin,
    }
    return {
        **{name: 0 if t is None else t.data_ptr() for name, t in tensors.items()},
        "n_heads": mixer.n_heads,
        "n_groups": mixer.n_groups,
        "head_width": mixer.width,
        "d_ff": ffn.gate.weight.shape[0],
        "ring_slots": state.n_slots if state.is_ring else 0,
        "qk_norm": _QK_NORMS[mixer.qk_norm],
        "normed_sum": int(layer.normed_sum),
    }


def _weight(norm: nn.Module | None) -> Tensor | None:
    return norm.weight if isinstance(norm, RMSNorm) else None
