"""What is measured besides the training loss. Evaluations never change a trial's numbers, so they have no part in
its identity (but for early stopping, which ends a trial by what it sees)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fabric.job.units import Count
from models.parts import Config


class SamplesConfig(Config):
    """Generated samples: `n` texts of `tokens` tokens, for distinct-n and repetition, and for reading."""

    n: int = Field(default=16, ge=1)
    tokens: int = Field(default=64, ge=4)
    temperature: float = Field(default=1.0, ge=0)


class EvaluateConfig(Config):
    """Validation during training and the measurements at its end.

    `every_tokens` or `times` (evenly spread, the end included) set when the validation loss is taken.
    """

    every_tokens: Count | None = Field(default=None, gt=0)
    times: int = Field(default=8, ge=1)
    val_tokens: Count = Field(default=65536, gt=0)
    final_val_tokens: Count | None = Field(default=None, gt=0)  # None: the whole split
    test_tokens: Count | None = Field(default=None, gt=0)  # None: the whole split
    recall: bool = True
    samples: SamplesConfig | None = SamplesConfig()
    minimal_pairs: Path | None = None
    lengths: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = ()
