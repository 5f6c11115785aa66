"""What every feed-forward layer declares. Shapes: D model width, F hidden width."""

from __future__ import annotations

from abc import abstractmethod

from pydantic import Field
from torch import nn

from models.parts import Part


class FFNConfig(Part):
    """Base of every feed-forward config."""

    d_ff: int = Field(gt=0, le=1 << 22)

    @abstractmethod
    def build(self, d_model: int) -> nn.Module:
        """One layer's module: forward(x_BTD) -> y_BTD."""

    @abstractmethod
    def n_params(self, d_model: int) -> int:
        """Parameters of one layer."""

    @abstractmethod
    def flops_per_token(self, d_model: int) -> float:
        """Forward FLOPs of one layer and token; a multiply-add is 2."""

    @abstractmethod
    def saved_elements(self, d_model: int) -> int:
        """Numbers per token that backward keeps beside the layer's input."""

    @abstractmethod
    def transient_elements(self, d_model: int) -> int:
        """Numbers per token alive at the peak of this layer's backward beside the saved ones."""
