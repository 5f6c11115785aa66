"""The decoder: token ids in, logits out. Shapes: B batch, T tokens, D model width, N vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cache import Cache
from models.config import ModelConfig
from models.mixers.base import Step
from models.norms import before_products
from models.residual import Block
from models.rope import RotaryTable


@dataclass
class CausalLMOutput:
    """`logits_BTN`; the cache that was given; hidden states (embedding, then each layer, the last one normed)
    and attention weights_BHTS per layer, where asked for.
    """

    logits: Tensor
    cache: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class CausalLM(nn.Module):
    """A decoder-only language model; made by `build`, which also initialises it.

    Raises ValueError for `causal=False`: a model that sees the future has no language-model loss.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.causal:
            raise ValueError(
                "causal=False cannot be built as a language model: every token would see the one it is to "
                "predict; leave causal at true"
            )
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, mixer) for mixer in config.mixers)
        self.final_norm = None if config.norm_placement == "postln" else config.norm.build(config.d_model)
        self.lm_head = (
            None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        )
        rotaries = [mixer.rotary(config.d_model) for mixer in config.mixers]
        distinct = list(dict.fromkeys(r for r in rotaries if r is not None))
        self.ropes = nn.ModuleList(RotaryTable(rotary, config.max_seq_len) for rotary in distinct)
        # The table of every layer, by its place; None: no rotation.
        self.rope_of = [None if r is None else distinct.index(r) for r in rotaries]

    @property
    def lm_head_weight(self) -> Tensor:
        """The output matrix (N, D): the embedding's when tied."""
        return self.embed.weight if self.lm_head is None else self.lm_head.weight

    def new_cache(
        self, batch_size: int = 1, capacity: int | None = None, dtype: torch.dtype | None = None
    ) -> Cache:
        """An empty cache on the model's device, in its dtype unless given."""
        weight = self.embed.weight
        return Cache(self.config, batch_size, capacity, dtype or weight.dtype, weight.device)

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> CausalLMOutput:
        """Logits of every position. `attention_mask_BT`: 1 for text, 0 for padding, which no token sees.

        With a cache, the ids follow on what it holds, and it is advanced. Raises ValueError for texts longer
        than `max_seq_len` or than the cache.
        """
        states: list[Tensor] | None = [] if output_hidden_states else None
        attentions: list[Tensor] | None = [] if output_attentions else None
        x_BTD = self._run(input_ids_BT, attention_mask_BT, cache, states, attentions)
        return CausalLMOutput(
            logits=F.linear(x_BTD, self.lm_head_weight),
            cache=cache,
            hidden_states=None if states is None else (*states, x_BTD),
            attentions=None if attentions is None else tuple(attentions),
        )

    def hidden(
        self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """The final (normed) hidden states_BTD; times `lm_head_weight` they are the logits."""
        return self._run(input_ids_BT, attention_mask_BT, cache, None, None)

    def _run(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None,
        cache: Cache | None,
        states: list[Tensor] | None,
        attentions: list[Tensor] | None,
    ) -> Tensor:
        B, T = input_ids_BT.shape
        start = 0 if cache is None else cache.n_tokens
        if start + T > self.config.max_seq_len:
            raise ValueError(
                f"{start + T} tokens are more than max_seq_len={self.config.max_seq_len}; "
                "give shorter texts or build the model with a larger max_seq_len"
            )
        if cache is None:
            key_mask = attention_mask_BT
            if key_mask is not None and key_mask.shape != input_ids_BT.shape:
                raise ValueError(
                    f"attention_mask has shape {tuple(key_mask.shape)}, the ids {tuple(input_ids_BT.shape)}"
                )
        else:
            key_mask = cache.admit(B, T, attention_mask_BT)
        steps = self._steps(start, T, key_mask, attentions, remembers=cache is not None)
        x_BTD = self.embed(input_ids_BT)
        for i, layer in enumerate(self.layers):
            if states is not None:
                states.append(x_BTD)
            x_BTD = layer(x_BTD, steps[self.rope_of[i]], None if cache is None else cache.layers[i])
        if cache is not None:
            cache.n_tokens, cache.key_mask_BS = start + T, key_mask
        return before_products(self.final_norm, x_BTD)

    def _steps(
        self, start: int, n: int, key_mask_BS: Tensor | None, attentions: list[Tensor] | None, remembers: bool
    ) -> dict[int | None, Step]:
        """What to tell the layers of every table (None: those without one)."""
        shared: dict[str, Any] = {"start": start, "key_mask_BS": key_mask_BS, "attentions": attentions}
        steps: dict[int | None, Step] = {None: Step(**shared)}
        positions_BS = None
        if key_mask_BS is not None and len(self.ropes):
            # The first token of a text stands at 0 however much padding is left of it.
            positions_BS = (key_mask_BS.long().cumsum(-1) - 1).clamp_min(0)
        for i, rope in enumerate(self.ropes):
            assert isinstance(rope, RotaryTable)
            if positions_BS is None:
                rotation = rope.at(start, n)
                all_rotation = rope.at(0, start + n) if remembers else None
            else:
                rotation = rope.at_positions(positions_BS[:, start:])
                all_rotation = rope.at_positions(positions_BS) if remembers else None
            steps[i] = Step(rotation=rotation, all_rotation=all_rotation, **shared)
        return steps


def build(config: ModelConfig, seed: int = 0, device: torch.device | str | None = None) -> CausalLM:
    """A model with its initial parameters (see `InitConfig`), in fp32, on `device` ("meta": shapes only).

    Every parameter is drawn on the CPU by a generator of its own, so values depend on (seed, name, shape)
    alone: not on the device, the order of construction, or the rest of the architecture.
    """
    model = uninitialised(config, device)
    if not model.embed.weight.is_meta:
        initialise(model, seed)
    return model


def uninitialised(config: ModelConfig, device: torch.device | str | None = None) -> CausalLM:
    """A model whose parameters hold whatever the memory held; for loading weights into."""
    with torch.device("meta"):
        model = CausalLM(config)
    device = torch.device(device or "cpu")
    if device.type != "meta":
        model.to_empty(device=device)
        for rope in model.ropes:
            assert isinstance(rope, RotaryTable)
            rope.fill()
    return model


@torch.no_grad()
def initialise(model: CausalLM, seed: int, only: Collection[str] | None = None) -> None:
    """Give every parameter its initial value, in place; or those of the names in `only`."""
    init, config = model.config.init, model.config
    std = config.d_model**-0.5 if init.std is None else init.std
    for name, parameter in model.named_parameters():
        if only is not None and name not in only:
            continue
        if parameter.ndim < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        writes = init.depth_scaled and name.endswith((".o.weight", ".down.weight"))
        scale = std / (2 * config.n_layers) ** 0.5 if writes else std
        drawn = torch.empty(parameter.shape, dtype=torch.float32).normal_(
            0.0, scale, generator=_generator(seed, name)
        )
        parameter.copy_(drawn)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
