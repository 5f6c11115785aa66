"""8-bit AdamW: block-wise quantised moments (Dettmers et al. 2022, arXiv 2110.02861), by bitsandbytes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from fabric.job.units import Real
from fabric.train.config import Decay, OptimizerConfig

if TYPE_CHECKING:
    import torch


class AdamW8bit(OptimizerConfig):
    """AdamW with uint8 moments for tensors of `min_8bit_size` elements and more."""

    kind: Literal["adamw8bit"]
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: Real = Field(default=1e-8, gt=0)
    weight_decay: Real = Field(default=0.1, ge=0)
    min_8bit_size: int = Field(default=4096, ge=1)

    STATE_BYTES_PER_PARAM: ClassVar[float] = 2.0625

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        from fabric.train.optimizers import decay_groups

        groups = decay_groups(model, self.weight_decay)
        return _bitsandbytes().optim.AdamW8bit(
            groups, lr=self.lr, betas=self.betas, eps=self.eps, min_8bit_size=self.min_8bit_size
        )


def _bitsandbytes() -> Any:
    """The library, imported without its warning that `kernels` is not Hugging Face's: no optimizer uses it."""
    source = logging.getLogger("bitsandbytes.backends.cpu.ops")
    source.addFilter(_is_news)
    try:
        import bitsandbytes
    finally:
        source.removeFilter(_is_news)
    return bitsandbytes


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not (text.startswith("Failed to load CPU gemm_4bit_forward") and "from 'kernels'" in text)
