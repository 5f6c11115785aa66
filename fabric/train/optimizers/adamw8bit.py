"""8-bit AdamW: block-wise quantised moments (Dettmers et al. 2022, arXiv 2110.02861), by bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fabric.job.units import Real
from fabric.train.config import OptimizerConfig

if TYPE_CHECKING:
    import torch


class AdamW8bit(OptimizerConfig):
    """AdamW with uint8 moments for tensors of `min_8bit_size` elements and more."""

    kind: Literal["adamw8bit"]
    betas: tuple[Real, Real] = (0.9, 0.95)
    eps: Real = Field(default=1e-8, gt=0)
    weight_decay: Real = Field(default=0.1, ge=0)
    min_8bit_size: int = Field(default=4096, ge=1)

    STATE_BYTES_PER_PARAM: ClassVar[float] = 2.0625

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        import bitsandbytes

        from fabric.train.optimizers import decay_groups

        groups = decay_groups(model, self.weight_decay)
        return bitsandbytes.optim.AdamW8bit(  # type: ignore[no-any-return]
            groups, lr=self.lr, betas=self.betas, eps=self.eps, min_8bit_size=self.min_8bit_size
        )
