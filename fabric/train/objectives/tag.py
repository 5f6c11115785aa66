"""Token classification by fine-tuning: entities, parts of speech (BERT, arXiv 1810.04805 §5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fabric.data.examples.base import UNASKED, Asks
from fabric.train.objectives.readout import ReadoutObjective, by_row, split_by_row

if TYPE_CHECKING:
    from torch import Tensor


class Tag(ReadoutObjective):
    """Cross entropy of the words' tags: the mean over rows of each row's mean over its words."""

    kind: Literal["tag"]

    ASKS: ClassVar[Asks] = "tags"

    @staticmethod
    def row_losses(outputs_AK: Tensor, targets_BT: Tensor) -> Tensor:
        import torch.nn.functional as F

        asked_BT = targets_BT != UNASKED
        nll_A = F.cross_entropy(outputs_AK, targets_BT[asked_BT], reduction="none")
        return by_row(nll_A, asked_BT) / asked_BT.sum(dim=1)

    @staticmethod
    def right(outputs_AK: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        asked_BT = targets_BT != UNASKED
        right_A = (outputs_AK.argmax(-1) == targets_BT[asked_BT]).long()
        return by_row(right_A, asked_BT), asked_BT.sum(dim=1)

    def read(self, outputs_AK: Tensor, targets_BT: Tensor) -> list[Any]:
        """The numbers of each row's tags, in the words' order."""
        return [row.tolist() for row in split_by_row(outputs_AK.argmax(-1), targets_BT != UNASKED)]
