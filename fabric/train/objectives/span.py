"""Extractive question answering by fine-tuning: where an answer begins and ends (BERT, arXiv 1810.04805 §4.2-4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from fabric.data.examples.base import BEGINS, ENDS, UNASKED, Asks
from fabric.train.objectives.readout import ReadoutObjective, split_by_row

if TYPE_CHECKING:
    from torch import Tensor

N_BEST = 20  # begins and ends that are tried with each other


class Span(ReadoutObjective):
    """The mean of two cross entropies over a row's candidates: where the answer begins, and where it ends.

    An answer that is read out begins before it ends and has `max_answer_tokens` at most. A decoder scores a beginning
    without having read what follows it.
    """

    kind: Literal["span"]
    max_answer_tokens: int = Field(default=30, ge=1)

    ASKS: ClassVar[Asks] = "span"

    def _outputs_for(self, n_answers: int) -> int:
        return 2

    @staticmethod
    def row_losses(outputs_AK: Tensor, targets_BT: Tensor) -> Tensor:
        log_p_BT2, begin_B, end_B = _of_rows(outputs_AK, targets_BT)
        begins = log_p_BT2[..., 0].gather(1, begin_B[:, None])
        ends = log_p_BT2[..., 1].gather(1, end_B[:, None])
        return -(begins + ends)[:, 0] / 2

    @staticmethod
    def right(outputs_AK: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """A row is right where both ends are."""
        import torch

        log_p_BT2, begin_B, end_B = _of_rows(outputs_AK, targets_BT)
        found_B2 = log_p_BT2.argmax(dim=1)
        right_B = ((found_B2[:, 0] == begin_B) & (found_B2[:, 1] == end_B)).long()
        return right_B, torch.ones_like(right_B)

    def read(self, outputs_AK: Tensor, targets_BT: Tensor) -> list[Any]:
        """Each row's best span and its score, [begin, end, score] in candidates (None: there is no span), and the score
        of no answer here, which is the last candidate."""
        rows = split_by_row(outputs_AK, targets_BT != UNASKED)
        return [{"best": self._best(row_C2[:-1]), "none": float(row_C2[-1].sum())} for row_C2 in rows]

    def _best(self, scores_C2: Tensor) -> list[float] | None:
        if not len(scores_C2):
            return None
        begins, ends = (scores_C2[:, i].topk(min(N_BEST, len(scores_C2))) for i in range(2))
        sums = begins.values[:, None] + ends.values[None, :]
        lengths = ends.indices[None, :] - begins.indices[:, None] + 1
        sums = sums.masked_fill((lengths < 1) | (lengths > self.max_answer_tokens), -float("inf"))
        at = int(sums.argmax())
        i, j = divmod(at, sums.shape[1])
        if sums[i, j].isinf():  # none of the likely ends belongs to a likely beginning
            whole = scores_C2.sum(-1)
            place = int(whole.argmax())
            return [place, place, float(whole[place])]
        return [int(begins.indices[i]), int(ends.indices[j]), float(sums[i, j])]


def _of_rows(outputs_AK: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of every position to be begin and end, log_p_BT2, and where these are."""
    import torch

    asked_BT = targets_BT != UNASKED
    scores_BT2 = outputs_AK.new_full((*targets_BT.shape, 2), -torch.inf)
    scores_BT2 = scores_BT2.masked_scatter(asked_BT[..., None], outputs_AK)
    marks_BT = targets_BT.where(asked_BT, 0)
    begin_B, end_B = ((marks_BT & mark).argmax(dim=1) for mark in (BEGINS, ENDS))
    return scores_BT2.log_softmax(dim=1), begin_B, end_B
