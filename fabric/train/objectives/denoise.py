"""Denoising: chosen tokens, most of them masked, from the text on both sides (BERT, arXiv 1810.04805 §3.1)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fabric.job.units import Real
from fabric.train.objectives.base import ObjectiveConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models import ModelConfig

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's step from one number to the next


class Denoise(ObjectiveConfig):
    """Masked-token prediction with an encoder; the loss is over the chosen tokens alone.

    Of a row's tokens `mask_rate` are chosen (rounded, at least one). Of these, `mask_share` are replaced by the mask
    id, which is the first that the tokenizer cannot produce; `random_share` by any token; the others stay.
    """

    kind: Literal["denoise"]
    mask_rate: Real = Field(default=0.15, gt=0, lt=1)
    mask_share: Real = Field(default=0.8, ge=0, le=1)
    random_share: Real = Field(default=0.1, ge=0, le=1)

    CAUSAL: ClassVar[bool] = False
    IS_LIKELIHOOD: ClassVar[bool] = False
    EXTRA_IDS: ClassVar[int] = 1

    @model_validator(mode="after")
    def _shares_of_one(self) -> Self:
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share={self.mask_share} and random_share={self.random_share} are more than all of the chosen "
                "tokens; their sum is at most 1 (BERT: 0.8 and 0.1)"
            )
        return self

    def around(self, trunk: Any, seed: int) -> nn.Module:
        import models

        # Without BERT's transform the head has no parameters: a trial's size is its architecture's.
        return models.MaskedLM(trunk, transform=False)

    def n_targets(self, seq_len: int) -> int:
        return min(seq_len, max(1, round(self.mask_rate * seq_len)))

    def flops_per_token(self, model: ModelConfig, seq_len: int, n_asked: float | None = None) -> float:
        import models

        head = 2 * model.d_model * model.vocab_size * self.n_targets(seq_len) / seq_len
        return models.flops_per_token(model, seq_len) + head

    def examples(
        self, rows_BT1: np.ndarray, *, seed: int, step: int, n_ids: int, first_row: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        from kernels.cross_entropy import IGNORED

        ids_BT = rows_BT1[:, :-1]
        B, T = ids_BT.shape
        order_BT, fate_BT, other_BT = np.split(_words(seed, step, first_row, B, 3 * T), 3, axis=1)
        n = self.n_targets(T)
        chosen_BT = order_BT <= np.partition(order_BT, n - 1, axis=1)[:, n - 1 : n]
        u_BT = (fate_BT >> np.uint64(11)) * 2.0**-53  # uniform in [0, 1)
        masked_BT = chosen_BT & (u_BT < self.mask_share)
        random_BT = chosen_BT & ~masked_BT & (u_BT < self.mask_share + self.random_share)
        any_id_BT = (other_BT % np.uint64(n_ids)).astype(np.int64)
        read_BT = np.where(masked_BT, n_ids, np.where(random_BT, any_id_BT, ids_BT))
        return read_BT, np.where(chosen_BT, ids_BT, IGNORED)

    @staticmethod
    def sum_nll(model: Any, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        total: Tensor = model.nll(ids_BT, targets_BT).sum()
        return total

    @staticmethod
    def nll(model: Any, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        import torch

        with torch.no_grad():
            each: Tensor = model.nll(ids_BT, targets_BT)
            return each


def _words(seed: int, step: int, first_row: int, n_rows: int, n: int) -> np.ndarray:
    """Random words uint64 [n_rows, n], each a function of (seed, step), its row's number and its column alone."""
    from fabric.data.order import mix

    digest = hashlib.blake2b(f"denoise:{seed}:{step}".encode(), digest_size=8).digest()
    rows_B1 = np.arange(first_row, first_row + n_rows, dtype=np.uint64)[:, None]
    states_B1 = mix(np.frombuffer(digest, "<u8") + rows_B1)
    return mix(states_B1 + np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN)
