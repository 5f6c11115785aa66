"""Next-token prediction: each token from those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fabric.train.objectives.base import ObjectiveConfig

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from models import ModelConfig


class NextToken(ObjectiveConfig):
    """A causal language model's loss: every token of a row, given the ones before it."""

    kind: Literal["next_token"]

    CAUSAL: ClassVar[bool] = True
    IS_LIKELIHOOD: ClassVar[bool] = True

    def n_targets(self, seq_len: int) -> int:
        return seq_len

    def flops_per_token(self, model: ModelConfig, seq_len: int, n_asked: float | None = None) -> float:
        import models

        return models.flops_per_token(model, seq_len)

    def examples(
        self, rows_BT1: np.ndarray, *, seed: int, step: int, n_ids: int, first_row: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        return rows_BT1[:, :-1], rows_BT1[:, 1:]

    @staticmethod
    def sum_nll(model: Any, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        from fabric.train import loss

        return loss.sum_nll(model, ids_BT, targets_BT)

    @staticmethod
    def nll(model: Any, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        from fabric.train import loss

        return loss.nll_per_token(model, ids_BT, targets_BT)
