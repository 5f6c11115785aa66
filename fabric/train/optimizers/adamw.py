"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), torch's fused implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from fabric.job.units import Real
from fabric.train.config import Decay, OptimizerConfig

if TYPE_CHECKING:
    import torch


class AdamW(OptimizerConfig):
    """AdamW; weight decay acts on matrices only (parameters of two or more dimensions)."""

    kind: Literal["adamw"]
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: Real = Field(default=1e-8, gt=0)
    weight_decay: Real = Field(default=0.1, ge=0)

    STATE_BYTES_PER_PARAM: ClassVar[float] = 8

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        import torch

        from fabric.train.optimizers import decay_groups, without_compiler

        groups = decay_groups(model, self.weight_decay)
        kind: Any = without_compiler(torch.optim.AdamW)
        return kind(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
