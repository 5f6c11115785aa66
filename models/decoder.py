"""The decoder: token ids in, logits out. Shapes: B batch, T tokens, D model width, N vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.linear import linears
from models.cache import Cache
from models.config import ModelConfig
from models.encoder import Encoder
from models.rope import RotaryTable
from models.shared_rows import SharedRows
from models.trunk import Trunk


@dataclass
class CausalLMOutput:
    """`logits_BTN`; the cache that was given; hidden states (embedding, then each layer, the last one normed)
    and attention weights_BHTS per layer, where asked for.
    """

    logits: Tensor
    cache: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class CausalLM(Trunk):
    """A decoder-only language model; made by `build`, which also initialises it.

    Raises ValueError for `causal=False`: a model that sees the future has no language-model loss.
    """

    def __init__(self, config: ModelConfig) -> None:
        if not config.causal:
            raise ValueError(
                "causal=False cannot be built as a language model: every token would see the one it is to "
                "predict; leave causal at true, or build an encoder"
            )
        super().__init__(config)
        self.lm_head = (
            None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        )

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
        x_BTD = self.run(input_ids_BT, attention_mask_BT, cache, states=states, attentions=attentions)
        return CausalLMOutput(
            logits=linears(x_BTD, self.lm_head_weight)[0],
            cache=cache,
            hidden_states=None if states is None else (*states, x_BTD),
            attentions=None if attentions is None else tuple(attentions),
        )

    def hidden(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        cache: Cache | None = None,
        shared: SharedRows | None = None,
    ) -> Tensor:
        """The final (normed) hidden states_BTD; times `lm_head_weight` they are the logits. `shared`: as `run` says."""
        return self.run(input_ids_BT, attention_mask_BT, cache, shared=shared)


def build(config: ModelConfig, seed: int = 0, device: torch.device | str | None = None) -> Any:
    """A model with its initial parameters (see `InitConfig`), in fp32, on `device` ("meta": shapes only): a
    `CausalLM`, or an `Encoder` where `causal` is false.

    Every parameter is drawn on the CPU by a generator of its own, so values depend on (seed, name, shape)
    alone: not on the device, the order of construction, or the rest of the architecture.
    """
    model = uninitialised(config, device)
    if not model.embed.weight.is_meta:
        initialise(model, seed)
    return model


def uninitialised(config: ModelConfig, device: torch.device | str | None = None) -> Any:
    """A model whose parameters hold whatever the memory held; for loading weights into."""
    with torch.device("meta"):
        model = CausalLM(config) if config.causal else Encoder(config)
    device = torch.device(device or "cpu")
    if device.type != "meta":
        allocate(model, device)
        for rope in model.ropes:
            assert isinstance(rope, RotaryTable)
            rope.fill()
    return model


def allocate(module: nn.Module, device: torch.device) -> None:
    """Give the parameters and buffers of a module on device meta memory on another device, with any values.

    As `to_empty`, which looks at meta tensors by way of sympy: most of a second in every process.
    """
    module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))


def initialise(model: Trunk, seed: int, only: Collection[str] | None = None) -> None:
    """Give every parameter its initial value, in place; or those of the names in `only`."""
    draw(model, model.config, seed, only=only)


@torch.no_grad()
def draw(
    module: nn.Module, config: ModelConfig, seed: int, prefix: str = "", only: Collection[str] | None = None
) -> None:
    """Initial values of a model's part, whose parameters are named `prefix`.… in the model."""
    init = config.init
    std = config.d_model**-0.5 if init.std is None else init.std
    for name, parameter in module.named_parameters(prefix=prefix):
        if only is not None and name not in only:
            continue
        if parameter.ndim < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        writes = init.depth_scaled and name.endswith((".o.weight", ".down.weight"))
        scale = std / (2 * config.n_layers) ** 0.5 if writes else std
        if name.endswith(
            "short_conv.weight"
        ):  # torch's own convolutions' deviation, whatever the matrices' is
            scale = (3 * parameter.shape[0]) ** -0.5
        draw_by_name(parameter, seed, name, scale)


@torch.no_grad()
def draw_by_name(parameter: Tensor, seed: int, name: str, std: float) -> None:
    """Normal values of deviation `std`, a function of (seed, name, shape) alone, in place."""
    drawn = torch.empty(parameter.shape, dtype=torch.float32)
    parameter.copy_(drawn.normal_(0.0, std, generator=_generator(seed, name)))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
