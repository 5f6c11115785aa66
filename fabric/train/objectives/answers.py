"""Answers: the ids that labelled examples ask for, and nothing else.

Shapes: B rows, T positions, A asked positions of all rows together, D width, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from fabric.data.examples.base import UNASKED
from fabric.train.objectives.base import ObjectiveConfig

if TYPE_CHECKING:
    from torch import Tensor

    from models import ModelConfig


class Judged(NamedTuple):
    """Rows judged: nll_B, the mean over each row's targets (fp64); which asked positions are right, by the most likely
    id of all, and how many are asked; what the model says to each row, as plain JSON, where that is asked for.
    """

    nll_B: Tensor
    n_right_B: Tensor
    n_asked_B: Tensor
    said_B: Sequence[Any] = ()


class Answers(ObjectiveConfig):
    """Cross entropy of the targets of labelled examples: the mean over rows of each row's mean over its targets.

    So a row counts once however much it asks, and the loss of a batch is the mean over any division of its rows.
    """

    kind: Literal["answers"]

    CAUSAL: ClassVar[bool] = True
    IS_LIKELIHOOD: ClassVar[bool] = False
    ROWS: ClassVar[Literal["text", "examples"]] = "examples"

    def n_targets(self, seq_len: int) -> int:
        """1: the loss is a mean over rows."""
        return 1

    def most_targets(self, seq_len: int) -> int:
        return seq_len

    def flops_per_token(self, model: ModelConfig, seq_len: int, n_asked: float | None = None) -> float:
        """With the output matrix at the `n_asked` positions of a row that spend it; where their number is not known
        before the rows are there, at all of them, which is an upper bound.
        """
        import models

        unasked = 0.0 if n_asked is None else 1 - n_asked / seq_len
        return models.flops_per_token(model, seq_len) - 2.0 * model.d_model * model.vocab_size * unasked

    def random_rows(self, n_rows: int, seq_len: int, n_ids: int, n_asked: float | None = None) -> np.ndarray:
        """As many are asked as is known, else half of them: the most that copying asks."""
        ids_B2T = np.random.default_rng(0).integers(0, n_ids, (n_rows, 2, seq_len))
        n = seq_len - seq_len // 2 if n_asked is None else max(1, round(n_asked))
        ids_B2T[:, 1, : seq_len - n] = UNASKED
        return ids_B2T

    def examples(
        self, rows_B2T: np.ndarray, *, seed: int, step: int, n_ids: int, first_row: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        # Padding is on the right, where no asked position sees it: any id does.
        return np.maximum(rows_B2T[:, 0], 0), rows_B2T[:, 1]

    @staticmethod
    def sum_nll(model: Any, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The sum over rows of each row's mean."""
        nll_A, _, asked_BT = _asked(model, ids_BT, targets_BT, judge=False)
        share_B1 = 1.0 / asked_BT.sum(dim=1, keepdim=True)
        total: Tensor = (nll_A * share_B1.expand(asked_BT.shape)[asked_BT]).sum()
        return total

    @staticmethod
    def nll(model: Any, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return Answers.judged(model, ids_BT, targets_BT).nll_B

    @staticmethod
    def judged(model: Any, ids_BT: Tensor, targets_BT: Tensor, read: bool = False) -> Judged:
        """Each row's loss and right answers, and (`read`) these as plain JSON; without gradient."""
        import torch

        with torch.no_grad():
            nll_A, right_A, asked_BT = _asked(model, ids_BT, targets_BT, judge=True)
        assert right_A is not None
        row_A = asked_BT.nonzero()[:, 0]
        n_asked_B = asked_BT.sum(dim=1)
        sums_B = torch.zeros(len(ids_BT), dtype=torch.float64, device=ids_BT.device)
        sums_B.index_add_(0, row_A, nll_A.double())
        n_right_B = torch.zeros_like(n_asked_B).index_add_(0, row_A, right_A.to(n_asked_B.dtype))
        nll_B = sums_B / n_asked_B
        if not read:
            return Judged(nll_B, n_right_B, n_asked_B)
        pairs = zip(n_right_B.tolist(), nll_B.tolist(), strict=True)
        said_B = [{"n_right": n, "loss": loss} for n, loss in pairs]
        return Judged(nll_B, n_right_B, n_asked_B, said_B)


def _asked(
    model: Any, ids_BT: Tensor, targets_BT: Tensor, judge: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """nll_A (fp32) of the targets in order of row and position, whether each is the most likely id, and where they are.

    The logits are computed for asked positions alone, and again in the backward pass where they are many.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    from fabric.train.loss import rows_at_once
    from kernels.cross_entropy import IGNORED

    asked_BT = targets_BT != IGNORED
    hidden_AD, targets_A = model.hidden(ids_BT)[asked_BT], targets_BT[asked_BT]
    weight_VD = model.lm_head_weight
    size = rows_at_once(*weight_VD.shape)
    parts = list(zip(hidden_AD.split(size), targets_A.split(size), strict=True))
    if judge or len(parts) == 1:
        found = [_scored(h_CD, weight_VD, t_C) for h_CD, t_C in parts]
    else:
        found = [checkpoint(_scored, h_CD, weight_VD, t_C, use_reentrant=False) for h_CD, t_C in parts]
    nll_A, right_A = (torch.cat(parts) for parts in zip(*found, strict=True))
    return nll_A, right_A if judge else None, asked_BT


def _scored(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    import torch
    import torch.nn.functional as F

    logits_CV = F.linear(hidden_CD, weight_VD).float()
    with torch.no_grad():
        right_C = logits_CV.argmax(dim=-1) == targets_C
    return F.cross_entropy(logits_CV, targets_C, reduction="none"), right_C
