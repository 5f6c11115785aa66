"""Regression of texts by fine-tuning: STS-B's number (GLUE, arXiv 1804.07461)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fabric.data.examples.base import NUMBER_STEP, UNASKED, Asks
from fabric.train.objectives.readout import ReadoutObjective

if TYPE_CHECKING:
    from torch import Tensor


class Regress(ReadoutObjective):
    """Squared error of a text's number, read at the text's end."""

    kind: Literal["regress"]

    ASKS: ClassVar[Asks] = "number"

    def _outputs_for(self, n_answers: int) -> int:
        return 1

    @staticmethod
    def row_losses(outputs_AK: Tensor, targets_BT: Tensor) -> Tensor:
        numbers_B = targets_BT[targets_BT != UNASKED].to(outputs_AK.dtype) * NUMBER_STEP
        return (outputs_AK[:, 0] - numbers_B) ** 2

    @staticmethod
    def right(outputs_AK: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing is asked: a number is near or far, not right."""
        nothing_B = targets_BT.new_zeros(len(targets_BT))
        return nothing_B, nothing_B

    def read(self, outputs_AK: Tensor, targets_BT: Tensor) -> list[Any]:
        """Each row's number."""
        return list(outputs_AK[:, 0].tolist())
