"""A trial: one model, one data order, one training run. Its id is a hash of everything that changes its numbers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from fabric.data.config import DataConfig
from fabric.evaluate.config import PLACES, EvaluateConfig
from fabric.train.config import TrainConfig
from models.config import ModelConfig
from models.parts import Config, Part, divisors_in_words

ID_SCHEMA = 1
MOST_WORKERS = 4096
# Fields of the evaluate section that do not change what is measured at the end (the test split has a key of its own).
WHILE_TRAINING = ("every_tokens", "times", "val_tokens", "test_tokens", "tasks_times")
# Fields of the training section that do not change the numbers (micro-batching: to 5e-6, see the README).
NOT_NUMBERS = ("micro_batch_size", "checkpoint", "log_every_steps", "compile")


def _parse_workers(value: Any) -> Any:
    """A number, or [fewest, most]; a JSON list becomes a pair. Raises ValueError for anything else."""
    pair = [value] if isinstance(value, int) else value
    if (
        isinstance(pair, list | tuple)
        and 1 <= len(pair) <= 2
        and all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MOST_WORKERS for n in pair)
        and pair[0] <= pair[-1]
    ):
        return pair[0] if pair[0] == pair[-1] else tuple(pair)
    raise ValueError(
        f"{value!r} is neither a number from 1 to {MOST_WORKERS} nor [fewest, most]; write 2, or [1, 2]"
    )


class RanksConfig(Config):
    """The processes that train one trial, and what keeps them together; none of it is part of a trial's identity, but
    for the `workers` of a stream.

    `workers` [1, 2]: two, and one where the other is lost: the trial goes on from its checkpoint with those left.
    `zero_stage` (DeepSpeed, arXiv 1910.02054): what the ranks divide: 1 the optimizer's state, 2 gradients too, 3
    parameters too. `offload` "cpu": the optimizer's state lives in host memory. A rank that gives no sign of life for
    `patience_seconds` is given up as a dead one is.
    """

    workers: Annotated[int | tuple[int, int], BeforeValidator(_parse_workers)] = 1
    engine: Literal["torch", "deepspeed"] = "torch"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "cpu"] = "none"
    patience_seconds: float = Field(default=600.0, ge=1, le=10**6)

    @property
    def most(self) -> int:
        """Workers a trial begins with."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def fewest(self) -> int:
        """Workers it needs to go on."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @model_validator(mode="after")
    def _divided_by_deepspeed(self) -> RanksConfig:
        if self.engine == "torch" and (self.zero_stage or self.offload != "none"):
            raise ValueError(
                "zero_stage and offload are DeepSpeed's: set engine: deepspeed, or leave them out"
            )
        if self.offload != "none" and not self.zero_stage:
            raise ValueError(
                "offload: cpu moves what ZeRO divides: set zero_stage to 1, 2 or 3, or leave it out"
            )
        return self

    def check(self, train: TrainConfig, device: str) -> None:
        """Raise ValueError for training that these processes cannot do, or not with one process's numbers."""
        batch, most = train.batch_size, self.most
        if batch % most:
            raise ValueError(
                f"train.batch_size={batch} cannot be divided among {most} workers; "
                f"use {divisors_in_words(batch, most)} workers, or a multiple of {most} sequences"
            )
        if train.optimizer.kind == "adamw8bit" and self.zero_stage:
            raise ValueError(
                "adamw8bit with zero_stage above 0: its moments are quantised in blocks of each parameter, ZeRO cuts "
                "elsewhere, so the numbers would depend on the number of workers; use adamw, or zero_stage: 0"
            )
        if train.lora is not None and self.engine == "deepspeed":
            raise ValueError(
                "train.lora with engine: deepspeed: its optimizer keeps what it trains, and checkpoints need the "
                "weights that stay as they are too; use engine: torch"
            )
        if train.precision == "fp16" and self.engine == "deepspeed" and device == "cpu":
            raise ValueError("precision fp16 with engine: deepspeed is for GPUs; use bf16 or fp32")

    @property
    def is_alone(self) -> bool:
        """Whether a trial is one plain process."""
        return self.most == 1 and self.engine == "torch"


class TrialSpec(Config):
    """Everything one training process needs. `data_key` names the token cache's content, `data` how to get it.

    `weights` is the hash of the file training starts from (`fabric.train.start`); None: initial values of the seed.
    """

    model: ModelConfig
    data: DataConfig
    data_key: str
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    seed: int = Field(ge=0)
    weights: str | None = None
    threads: int = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    ranks: RanksConfig = RanksConfig()

    @model_validator(mode="after")
    def _decided(self) -> TrialSpec:
        if "auto" in (self.train.precision, self.train.compile):
            raise ValueError(
                "a trial's precision and compile are decided before it is planned; auto is for jobs"
            )
        self.ranks.check(self.train, self.device)
        return self

    @property
    def id(self) -> str:
        """The first 16 hex digits of the sha256 of `identity()`."""
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()[:16]

    @property
    def cached(self) -> tuple[str, ...]:
        """The folders of a cache that its training reads."""
        weights = () if self.weights is None else (f"weights/{self.weights}",)
        return (f"tokens/{self.data_key}", *weights)

    @property
    def evaluation_key(self) -> str:
        """What the final measurements depend on besides the weights: results under two keys are never compared."""
        config = described(self.evaluate.model_copy(update=dict.fromkeys((*PLACES, *WHILE_TRAINING))))
        for name in WHILE_TRAINING:
            config.pop(name, None)
        body = [config, str(self.evaluate.minimal_pairs)]
        if self.evaluate.tasks_data is not None:
            body.append(str(self.evaluate.tasks_data))
        return hashlib.sha256(canonical_json(body).encode()).hexdigest()[:12]

    def identity(self) -> dict[str, Any]:
        """What the id is a hash of: no paths or cadences, and no worker counts but a stream's; fields at their default
        left out."""
        train = described(self.train)
        for name in NOT_NUMBERS:
            train.pop(name, None)
        if train["objective"] == {"kind": "next_token"}:  # what a training section that names none has meant
            del train["objective"]
        identity = {
            "id_schema": ID_SCHEMA,
            "model": described(self.model),
            "data_key": self.data_key,
            "seq_len": self.data.seq_len,
            "train": train,
            "seed": self.seed,
        }
        if self.data.stream is not None:
            identity["order"] = self.data.order
            if self.ranks.workers != 1:  # each reads units of its own: other rows come together in a batch
                identity["workers"] = described(self.ranks)["workers"]
        if self.weights is not None:
            identity["weights"] = self.weights
        if self.train.early_stop is not None:
            evaluate = self.evaluate
            identity["early_stop_sees"] = [evaluate.every_tokens, evaluate.times, evaluate.val_tokens]
        return identity


def described(config: BaseModel) -> dict[str, Any]:
    """A config as plain data: fields at their default left out, a part's revision (from 2 on) written in."""
    body: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        at_default = not field.is_required() and value == field.get_default(call_default_factory=True)
        if not at_default or isinstance(value, Part):
            body[name] = _plain(value, name)
    if isinstance(config, Part) and config.REVISION != 1:
        body["revision"] = config.REVISION
    return body


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, BaseModel):
        return described(value)
    if isinstance(value, list | tuple):
        return [_plain(v, where) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v, where) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where}={value!r} of type {type(value).__name__} has no canonical form")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, and one spelling a number (2.0 and 2 are the same).

    Raises TypeError for a type it does not know and ValueError for NaN or infinity.
    """
    return json.dumps(
        _canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )


def _canonical(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical form")
        return int(value) if value == int(value) and abs(value) < 2**53 else value
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(f"keys of {value!r} must be text")
        return {k: _canonical(v) for k, v in value.items()}
    raise TypeError(f"{value!r} of type {type(value).__name__} has no canonical form")
