"""What stands on an encoder: a classifier of texts, and the prediction of masked tokens.

Shapes: B batch, T tokens, D model width, L labels, N vocabulary, M selected positions.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.cross_entropy import IGNORED
from models.config import ModelConfig
from models.decoder import allocate, draw
from models.encoder import Encoder


class _OnEncoder(nn.Module):
    """An encoder and what a head adds to it, with the head's initial values."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise ValueError(f"{type(encoder).__name__} is no encoder; build one with causal: false")
        self.encoder = encoder

    @property
    def config(self) -> ModelConfig:
        return self.encoder.config

    def hidden(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """The encoder's final hidden states_BTD."""
        return self.encoder.hidden(input_ids_BT, attention_mask_BT, token_type_ids_BT)

    @property
    def lm_head_weight(self) -> Tensor:
        """Raises ValueError, as the encoder's does."""
        return self.encoder.lm_head_weight

    def _begin(self, seed: int) -> None:
        """Put the head beside the encoder's weights and draw it; the encoder's own values stay."""
        weight = self.encoder.embed.weight
        for name, module in self.named_children():
            if name != "encoder":
                allocate(module, weight.device)
                module.to(weight.dtype)
                if not weight.is_meta:
                    draw(module, self.config, seed, name)


class SequenceClassifier(_OnEncoder):
    """One output a text: `n_labels` classes, or `n_labels` numbers (problem "regression").

    `pooling` "first": BERT's, tanh of an affine map (the encoder's own `pooler`, which it is given here if it has
    none) of the first token that is no padding; "mean": the mean of all tokens that are no padding. Raises ValueError
    for anything but an encoder.
    """

    def __init__(
        self,
        encoder: Encoder,
        n_labels: int,
        pooling: Literal["first", "mean"] = "first",
        problem: Literal["classification", "regression"] = "classification",
        seed: int = 0,
    ) -> None:
        super().__init__(encoder)
        fewest = 2 if problem == "classification" else 1
        if n_labels < fewest:
            raise ValueError(f"n_labels={n_labels}: a {problem} has at least {fewest}")
        if pooling not in ("first", "mean") or problem not in ("classification", "regression"):
            raise ValueError(
                f"pooling={pooling!r}, problem={problem!r}: pooling is 'first' or 'mean', problem "
                "'classification' or 'regression'"
            )
        self.pooling, self.problem, self.n_labels = pooling, problem, n_labels
        D = encoder.config.d_model
        if pooling == "first" and encoder.pooler is None:
            add_pooler(encoder, seed)
        with torch.device("meta"):
            self.classifier = nn.Linear(D, n_labels)
        self._begin(seed)

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """logits_BL, or for a regression the numbers."""
        x_BTD = self.hidden(input_ids_BT, attention_mask_BT, token_type_ids_BT)
        if self.pooling == "first":
            return self.classifier(self.encoder.pooled(x_BTD, attention_mask_BT))
        if attention_mask_BT is None:
            return self.classifier(x_BTD.mean(1))
        real_BT1 = attention_mask_BT.bool().unsqueeze(-1)
        return self.classifier(x_BTD.masked_fill(~real_BT1, 0.0).sum(1) / real_BT1.sum(1).clamp_min(1))

    def loss(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None,
        labels: Tensor,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Mean cross entropy of labels_B, or mean squared error of the numbers (B, or B x L)."""
        logits_BL = self(input_ids_BT, attention_mask_BT, token_type_ids_BT)
        if self.problem == "classification":
            return F.cross_entropy(logits_BL.float(), labels)
        return F.mse_loss(logits_BL.float(), labels.reshape(logits_BL.shape).float())


class MaskedTransform(nn.Module):
    """BERT's map before the output matrix: norm(gelu(dense(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.norm = config.norm.build(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x)))


class OutputBias(nn.Module):
    """One number a token id, added to its logit."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.bias


class MaskedLM(_OnEncoder):
    """Predicts tokens from the text on both sides of them (arXiv 1810.04805 §3.1), with the embedding as output matrix.

    `transform`: BERT's dense layer, GELU, norm and output bias before it; without, the head has no parameters. Raises
    ValueError for anything but an encoder.
    """

    def __init__(self, encoder: Encoder, transform: bool = True, seed: int = 0) -> None:
        super().__init__(encoder)
        self.transform: MaskedTransform | None = None
        self.output: OutputBias | None = None
        if transform:
            with torch.device("meta"):
                self.transform = MaskedTransform(encoder.config)
                self.output = OutputBias(encoder.config.vocab_size)
        self._begin(seed)

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """logits_BTN of every position."""
        return self._logits(self.hidden(input_ids_BT, attention_mask_BT, token_type_ids_BT))

    def nll(
        self,
        input_ids_BT: Tensor,
        labels_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood_M (fp32, nats) of the labels that are not -100, row by row; logits of these alone."""
        x_BTD = self.hidden(input_ids_BT, attention_mask_BT, token_type_ids_BT)
        selected_BT = labels_BT != IGNORED
        logits_MN = self._logits(x_BTD[selected_BT])
        return F.cross_entropy(logits_MN.float(), labels_BT[selected_BT], reduction="none")

    def loss(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None,
        labels_BT: Tensor,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Mean over the labels that are not -100."""
        return self.nll(input_ids_BT, labels_BT, attention_mask_BT, token_type_ids_BT).mean()

    def _logits(self, x: Tensor) -> Tensor:
        x = x if self.transform is None else self.transform(x)
        logits = F.linear(x, self.encoder.embed.weight)
        return logits if self.output is None else self.output(logits)


def add_pooler(encoder: Encoder, seed: int = 0) -> None:
    """Give an encoder BERT's pooler, with initial values."""
    D, weight = encoder.config.d_model, encoder.embed.weight
    with torch.device("meta"):
        pooler = nn.Linear(D, D)
    allocate(pooler, weight.device)
    encoder.pooler = pooler.to(weight.dtype)
    if not weight.is_meta:
        draw(encoder.pooler, encoder.config, seed, "pooler")
