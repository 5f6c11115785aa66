"""What is measured besides the training loss. Evaluations never change a trial's numbers, so they have no part in
its identity (but for early stopping, which ends a trial by what it sees)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from fabric.job.units import Count
from models.parts import Config

PLACES = ("minimal_pairs", "tasks_data")  # the fields that are paths


class SamplesConfig(Config):
    """Generated samples: `n` texts of `tokens` tokens, for distinct-n and repetition, and for reading."""

    n: int = Field(default=16, ge=1)
    tokens: int = Field(default=64, ge=4)
    temperature: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _greedy_is_one(self) -> Self:
        if self.temperature == 0 and self.n > 1:
            raise ValueError(
                f"temperature 0 draws the same text {self.n} times; set n to 1, or temperature above 0"
            )
        return self


class EvaluateConfig(Config):
    """Validation during training and the measurements at its end.

    `every_tokens` or `times` (evenly spread, the end included) set when the validation loss is taken. `tasks` are
    names with their settings (`sst2`, `boolq:shots=4`), measured `tasks_times` times (the end included), by the first
    `tasks_limit` items of each; `tasks_data` is the folder with their files (default: $FABRIC_DATA, else the hub).
    """

    every_tokens: Count | None = Field(default=None, gt=0)
    times: int = Field(default=8, ge=1)
    val_tokens: Count = Field(default=65536, gt=0)
    final_val_tokens: Count | None = Field(default=None, gt=0)  # None: the whole split
    test_tokens: Count | None = Field(default=None, gt=0)  # None: the whole split
    recall: bool = True
    samples: SamplesConfig | None = SamplesConfig()
    minimal_pairs: Path | None = None
    lengths: tuple[Annotated[int, Field(ge=2)], ...] = ()
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    tasks: tuple[str, ...] = ()
    tasks_data: Path | None = None
    tasks_limit: Annotated[int, Field(ge=1)] | None = None
    tasks_times: int = Field(default=1, ge=1)

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if not tasks:
            return tasks
        from fabric.evaluate.tasks import task  # with scipy

        labels = tuple(task(text).label for text in tasks)
        if len(set(labels)) < len(labels):
            raise ValueError("a task is listed twice")
        return labels
