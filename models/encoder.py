"""The encoder: every token sees the ones before and after it. Shapes: B batch, T tokens, D model width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.trunk import Trunk


@dataclass
class EncoderOutput:
    """`last_hidden_state_BTD`; `pooled_BD` where the encoder has a pooler; hidden states (embedding, then each
    layer, the last one normed) and attention weights_BHTS per layer, where asked for.
    """

    last_hidden_state: Tensor
    pooled: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Encoder(Trunk):
    """A bidirectional model (BERT, arXiv 1810.04805); made by `build` of a config with `causal` false.

    It has no output head (see `models.heads`), no cache and no next-token loss: what would need them raises
    ValueError. `pooler`, where there is one, is BERT's: tanh of an affine map of the first token. Raises ValueError
    for a causal config.
    """

    def __init__(self, config: ModelConfig) -> None:
        if config.causal:
            raise ValueError("causal=True is a decoder: build a CausalLM, or set causal to false")
        super().__init__(config)
        self.pooler: nn.Linear | None = None

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """`attention_mask_BT`: 1 for text, 0 for padding (on either side), which no token sees.

        Raises ValueError for texts longer than `max_seq_len`.
        """
        states: list[Tensor] | None = [] if output_hidden_states else None
        attentions: list[Tensor] | None = [] if output_attentions else None
        x_BTD = self.run(
            input_ids_BT, attention_mask_BT, None, token_type_ids_BT, states=states, attentions=attentions
        )
        return EncoderOutput(
            last_hidden_state=x_BTD,
            pooled=None if self.pooler is None else self.pooled(x_BTD, attention_mask_BT),
            hidden_states=None if states is None else (*states, x_BTD),
            attentions=None if attentions is None else tuple(attentions),
        )

    def hidden(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """The final (normed) hidden states_BTD."""
        return self.run(input_ids_BT, attention_mask_BT, None, token_type_ids_BT)

    def pooled(self, x_BTD: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """The pooler of final hidden states, pooled_BD; the first token is the first that is no padding."""
        assert self.pooler is not None
        return torch.tanh(self.pooler(first_token(x_BTD, attention_mask_BT)))

    @property
    def lm_head_weight(self) -> Tensor:
        """Raises ValueError: there is none."""
        raise ValueError(
            "an encoder (causal=False) has no next-token head and no language-model loss: every token would see the "
            "one it is to predict. Use models.MaskedLM or models.SequenceClassifier on it, or a model with causal true"
        )

    def new_cache(self, *_: object, **__: object) -> NoReturn:
        """Raises ValueError: a token that comes later changes what all earlier ones are."""
        raise ValueError(
            "an encoder (causal=False) has no cache: its hidden states change with every token that is added; "
            "give it the whole text, or use a model with causal true"
        )


def first_token(x_BTD: Tensor, attention_mask_BT: Tensor | None) -> Tensor:
    """x_BD at each text's first token: position 0, or the first that is not padding."""
    if attention_mask_BT is None:
        return x_BTD[:, 0]
    first_B = attention_mask_BT.bool().long().argmax(-1)
    return x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), first_B]
