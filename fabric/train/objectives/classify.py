"""Classification of texts by fine-tuning (BERT, arXiv 1810.04805 §4.1; decoders: GPT, Radford et al. 2018 §3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fabric.data.examples.base import UNASKED, Asks
from fabric.train.objectives.readout import ReadoutObjective

if TYPE_CHECKING:
    from torch import Tensor


class Classify(ReadoutObjective):
    """Cross entropy of a text's class, read at the text's end."""

    kind: Literal["classify"]

    ASKS: ClassVar[Asks] = "class"

    @staticmethod
    def row_losses(outputs_AK: Tensor, targets_BT: Tensor) -> Tensor:
        import torch.nn.functional as F

        return F.cross_entropy(outputs_AK, targets_BT[targets_BT != UNASKED], reduction="none")

    @staticmethod
    def right(outputs_AK: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        right_B = (outputs_AK.argmax(-1) == targets_BT[targets_BT != UNASKED]).long()
        return right_B, torch.ones_like(right_B)

    def read(self, outputs_AK: Tensor, targets_BT: Tensor) -> list[Any]:
        """The number of each row's class."""
        return list(outputs_AK.argmax(-1).tolist())
