"""What the objectives share that fine-tune a model to answer by a linear map of its hidden states.

Shapes: B rows, T positions, A asked positions of all rows together, K outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fabric.data.examples.base import PADDING, UNASKED
from fabric.train.objectives.answers import Judged
from fabric.train.objectives.base import ObjectiveConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fabric.data.config import DataConfig
    from models import ModelConfig


class ReadoutObjective(ObjectiveConfig):
    """Base of the objectives whose model is a `models.Readout` on a decoder or an encoder; the loss of a batch is the
    mean over its rows.

    `n_outputs` "auto": as many as the examples have classes, tags or ends. `ASKS`: what the examples' targets are.
    """

    n_outputs: int | Literal["auto"] = Field(default="auto", ge=1)

    CAUSAL: ClassVar[bool] = True
    IS_LIKELIHOOD: ClassVar[bool] = False
    ROWS: ClassVar[Literal["text", "examples"]] = "examples"
    KEEPS_LM_HEAD: ClassVar[bool] = False
    SKIPS_PADDING: ClassVar[bool] = True

    def check_model(self, model: ModelConfig) -> None:
        """Nothing: decoders and encoders will do."""

    def for_data(self, data: DataConfig) -> ReadoutObjective:
        self.check_data(data)
        assert data.examples is not None
        n = self._outputs_for(data.examples.n_answers or 1)
        if self.n_outputs not in ("auto", n):
            raise ValueError(
                f"n_outputs={self.n_outputs}: examples of kind {data.examples.kind} have {n}; leave it out"
            )
        return self.model_copy(update={"n_outputs": n})

    def _outputs_for(self, n_answers: int) -> int:
        return n_answers

    def around(self, trunk: Any, seed: int) -> nn.Module:
        import models

        assert isinstance(self.n_outputs, int), "resolved when the job was read"
        return models.Readout(trunk, self.n_outputs, seed)

    def n_targets(self, seq_len: int) -> int:
        """1: the loss is a mean over rows."""
        return 1

    def flops_per_token(self, model: ModelConfig, seq_len: int, n_asked: float | None = None) -> float:
        """Without the output matrix, which is not there; the readout's own are left out (K numbers, not V)."""
        import models

        head = 2.0 * model.d_model * model.vocab_size if model.causal else 0.0
        return models.flops_per_token(model, seq_len) - head

    def random_rows(self, n_rows: int, seq_len: int, n_ids: int, n_asked: float | None = None) -> np.ndarray:
        """Asked at the end alone."""
        rows_B2T = np.random.default_rng(0).integers(0, n_ids, (n_rows, 2, seq_len))
        rows_B2T[:, 1, :-1] = UNASKED
        rows_B2T[:, 1, -1] = 0
        return rows_B2T

    def examples(
        self, rows_B2T: np.ndarray, *, seed: int, step: int, n_ids: int, first_row: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows to the end of the longest of them."""
        longest = max(1, int((rows_B2T[:, 0] != PADDING).sum(axis=1).max()))
        return rows_B2T[:, 0, :longest], rows_B2T[:, 1, :longest]

    @staticmethod
    @abstractmethod
    def row_losses(outputs_AK: Tensor, targets_BT: Tensor) -> Tensor:
        """loss_B of each row, fp32."""

    @staticmethod
    @abstractmethod
    def right(outputs_AK: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """n_right_B and n_asked_B: which answers are the ones asked for."""

    @abstractmethod
    def read(self, outputs_AK: Tensor, targets_BT: Tensor) -> list[Any]:
        """What each row's outputs say, as plain JSON; of the targets only their places are looked at."""

    @classmethod
    def sum_nll(cls, model: Any, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return cls.row_losses(model(ids_BT, targets_BT != UNASKED), targets_BT).sum()

    @classmethod
    def nll(cls, model: Any, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        import torch

        with torch.no_grad():
            return cls.row_losses(model(ids_BT, targets_BT != UNASKED), targets_BT).double()

    def judged(self, model: Any, ids_BT: Tensor, targets_BT: Tensor, read: bool = False) -> Judged:
        """Each row's loss, right answers, and (`read`) what it is answered; without gradient."""
        import torch

        with torch.no_grad():
            outputs_AK = model(ids_BT, targets_BT != UNASKED)
            losses_B = self.row_losses(outputs_AK, targets_BT).double()
            said_B = self.read(outputs_AK, targets_BT) if read else ()
            return Judged(losses_B, *self.right(outputs_AK, targets_BT), said_B)


def by_row(values_A: Tensor, asked_BT: Tensor) -> Tensor:
    """The sum of each row's values, values_B."""
    import torch

    row_A = asked_BT.nonzero()[:, 0]
    sums_B = torch.zeros(len(asked_BT), dtype=values_A.dtype, device=values_A.device)
    return sums_B.index_add(0, row_A, values_A)


def split_by_row(values_A: Tensor, asked_BT: Tensor) -> tuple[Tensor, ...]:
    """Each row's values."""
    return values_A.split(asked_BT.sum(dim=1).tolist())
