"""What a trial's training is: optimizer, schedule, precision, length. All of it is part of the trial's identity."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fabric.job.units import Count, Real, Seconds
from fabric.train.objectives.base import ObjectiveConfig
from fabric.train.objectives.next_token import NextToken
from models.parts import Config, Part, divisors_in_words, union_of

MOST_SEQUENCES = 1_000_000
MOST_TOKENS_PER_PARAM = 1_000_000
Decay = Annotated[Real, Field(ge=0, lt=1)]  # of a moving average: Adam's betas


class OptimizerConfig(Part):
    """Base of the files in `fabric/train/optimizers/`. `lr` is the peak learning rate."""

    STATE_BYTES_PER_PARAM: ClassVar[float]
    lr: Real = Field(gt=0)

    @abstractmethod
    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model's parameters, its groups' rates at the peak."""


class ScheduleConfig(Part):
    """Base of the files in `fabric/train/schedules/`.

    `warmup` is a fraction of the steps below 1, a number of steps from 1 on.
    """

    warmup: Real = Field(default=0.02, ge=0)

    def warmup_steps(self, n_steps: int) -> int:
        return round(self.warmup * n_steps) if self.warmup < 1 else int(self.warmup)

    @abstractmethod
    def multiplier(self, step: int, n_steps: int) -> float:
        """The factor on the peak rate for the update of `step` (0-based) of `n_steps`."""


if TYPE_CHECKING:
    import torch

    Optimizer = OptimizerConfig
    Schedule = ScheduleConfig
    Objective = ObjectiveConfig
else:
    Optimizer = union_of("fabric.train.optimizers", OptimizerConfig)
    Schedule = union_of("fabric.train.schedules", ScheduleConfig)
    Objective = union_of("fabric.train.objectives", ObjectiveConfig)


class EarlyStopConfig(Config):
    """Ends a trial as *converged* after `patience` evaluations without `min_delta` improvement of `metric`."""

    metric: Literal["val_loss"] = "val_loss"
    patience: int = Field(default=5, ge=1)
    min_delta: Real = Field(default=0.0, ge=0)


class DivergenceConfig(Config):
    """When a run counts as diverged: a non-finite loss, or `above_initial_steps` steps above the first loss."""

    above_initial_steps: int = Field(default=50, ge=1)


class CheckpointConfig(Config):
    """When checkpoints are written; none of it changes a trial's numbers. The last state is always kept."""

    every_steps: int | None = Field(default=None, ge=1)
    every_seconds: Seconds | None = Field(default=60.0, gt=0)
    keep_last: int = Field(default=1, ge=1)


class LoRAConfig(Config):
    """Low-rank adaptation (arXiv 2106.09685): the model stays as it is, and beside its layers' matrices of these names
    an addition of rank `rank`, scaled by `alpha` / `rank`, is trained; so is what stands on the model.
    """

    rank: int = Field(default=8, ge=1)
    alpha: Real = Field(default=16, gt=0)
    targets: tuple[str, ...] = Field(default=("q", "v"), min_length=1)


class TrainConfig(Config):
    """One trial's training run.

    Length: `tokens` (global, all ranks) or `tokens_per_param`; exactly one. `batch_size` is the global batch in
    sequences; `micro_batch_size` splits it (losses equal to 5e-6) and is not part of the identity. `objective` is
    what the loss is of. `lora`: of weights that exist, an addition of low rank is trained alone.
    """

    tokens: Count | None = Field(default=None, gt=0)
    tokens_per_param: Real | None = Field(default=None, gt=0, le=MOST_TOKENS_PER_PARAM)
    batch_size: Count = Field(gt=0, le=MOST_SEQUENCES)
    micro_batch_size: Count | None = Field(default=None, gt=0, le=MOST_SEQUENCES)
    optimizer: Optimizer
    schedule: Schedule
    objective: Objective = NextToken(kind="next_token")
    lora: LoRAConfig | None = None
    clip_norm: Real | None = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    compile: bool | Literal["auto"] = False
    early_stop: EarlyStopConfig | None = None
    divergence: DivergenceConfig = DivergenceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every_steps: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.tokens is None) == (self.tokens_per_param is None):
            raise ValueError("give the training length once: either tokens or tokens_per_param")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} does not divide batch_size={self.batch_size}; "
                f"use {divisors_in_words(self.batch_size, self.micro_batch_size)}"
            )
        return self

    def n_tokens(self, n_params: int) -> int:
        """Training tokens for a model of `n_params` parameters."""
        return self.tokens if self.tokens is not None else round(float(self.tokens_per_param or 0) * n_params)

    def n_steps(self, seq_len: int, n_params: int) -> int:
        """Optimizer steps: the tokens divided by the tokens of a global batch, at least one."""
        return max(1, self.n_tokens(n_params) // (self.batch_size * seq_len))
