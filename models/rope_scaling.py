"""Rotary frequencies stretched for texts longer than those a model was first trained on.

R: rotated width. Fields have the names and meaning they have in transformers' `rope_parameters`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.parts import Config


def _unscaled(theta: float, width: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


class Scaling(Config):
    """Base of the scalings."""

    factor: float = Field(ge=1)

    @abstractmethod
    def frequencies(self, theta: float, width: int) -> Tensor:
        """Angle per position of every pair, (R/2,)."""

    @property
    def amplitude(self) -> float:
        """What cos and sin are multiplied by."""
        return 1.0

    @property
    def score_scale(self) -> float:
        """What latent attention's scores are multiplied by (DeepSeek-V3)."""
        return 1.0


class LinearScaling(Scaling):
    """Every frequency divided by `factor` (arXiv 2306.15595)."""

    kind: Literal["linear"]

    def frequencies(self, theta: float, width: int) -> Tensor:
        return _unscaled(theta, width) / self.factor


class Llama3Scaling(Scaling):
    """Llama 3.1 (arXiv 2407.21783): slow pairs divided by `factor`, fast ones kept, a ramp between.

    A pair is fast or slow by how often it turns in `original_max_position_embeddings` tokens.
    """

    kind: Literal["llama3"]
    low_freq_factor: float = Field(gt=0)
    high_freq_factor: float = Field(gt=0)
    original_max_position_embeddings: int = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Llama3Scaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} must be above low_freq_factor="
                f"{self.low_freq_factor}: pairs that turn more often are kept, the others stretched"
            )
        return self

    def frequencies(self, theta: float, width: int) -> Tensor:
        kept = _unscaled(theta, width)
        turns = self.original_max_position_embeddings * kept / (2 * math.pi)
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        ramp = ramp.clamp(0, 1)
        return (1 - ramp) * kept / self.factor + ramp * kept


class YarnScaling(Scaling):
    """YaRN (arXiv 2309.00071 §3): as `llama3` with the ramp over pairs' indices, and larger cos and sin.

    `attention_factor` (None: 0.1 ln(factor) + 1, or the ratio of that with `mscale` and `mscale_all_dim`
    before the logarithm) multiplies cos and sin. DeepSeek's latent attention also multiplies its scores by
    the square of `mscale_all_dim`'s.
    """

    kind: Literal["yarn"]
    original_max_position_embeddings: int = Field(gt=0)
    beta_fast: float = Field(default=32.0, gt=0)
    beta_slow: float = Field(default=1.0, gt=0)
    attention_factor: float | None = Field(default=None, gt=0)
    mscale: float | None = Field(default=None, gt=0)
    mscale_all_dim: float | None = Field(default=None, gt=0)
    truncate: bool = True

    def _magnitude(self, mscale: float = 1.0) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return self._magnitude(self.mscale) / self._magnitude(self.mscale_all_dim)
        return self._magnitude()

    @property
    def score_scale(self) -> float:
        return 1.0 if self.mscale_all_dim is None else self._magnitude(self.mscale_all_dim) ** 2

    def frequencies(self, theta: float, width: int) -> Tensor:
        def index_of(n_turns: float) -> float:
            """The pair that turns that often in the original length."""
            return (
                width
                * math.log(self.original_max_position_embeddings / (n_turns * 2 * math.pi))
                / (2 * math.log(theta))
            )

        low, high = index_of(self.beta_fast), index_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        span = high - low or 0.001
        stretched = ((torch.arange(width // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
        kept = _unscaled(theta, width)
        return kept / self.factor * stretched + kept * (1 - stretched)


RopeScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling, Field(discriminator="kind")]
