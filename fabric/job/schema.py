"""The job file's schema: what to compare, how to search, on what resources, at which scales."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from fabric.data.config import DataConfig
from fabric.evaluate.config import EvaluateConfig
from fabric.job.units import Number, Real
from fabric.planning.parallel import ClusterConfig
from fabric.planning.stopping.base import StoppingRule
from fabric.planning.stopping.fifo import Fifo
from fabric.planning.trial import RanksConfig
from fabric.train.config import TrainConfig
from models.parts import Config, union_of

SCHEMA = 1
MOST_SEEDS = 1000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_NAME = 100  # it names a folder, and takes part in others' names
SECTIONS = ("model", "data", "train", "evaluate")

if TYPE_CHECKING:
    Stopping = StoppingRule
else:
    Stopping = union_of("fabric.planning.stopping", StoppingRule)


class BaseSection(Config):
    """The configuration every arm starts from. `model` may name a `preset` and override parts of it."""

    model: dict[str, Any]
    data: DataConfig
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()


class ArmConfig(Config):
    """A named set of overrides: `{name: gqa, set: {model.mixer: {kind: gqa, …}}}`; `set` may be left out."""

    name: str
    set: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        return _plain_name(name)


class AxisConfig(Config):
    """One thing that varies: a `path` with `values`, or named `arms`, or (mode random) a range to sample from.

    A range whose `low` and `high` are both written as integers (`low: 1, high: 4`) gives integers, both ends included,
    on either scale; write `1.0` for real numbers.
    `role: nuisance` marks what is tuned inside every arm (the learning rate) instead of being compared.
    """

    path: str | None = None
    values: list[Any] | None = Field(default=None, min_length=1)
    low: Number | None = None
    high: Number | None = None
    scale: Literal["linear", "log"] = "linear"
    arms: list[ArmConfig] | None = Field(default=None, min_length=1)
    role: Literal["experiment", "nuisance"] = "experiment"

    @model_validator(mode="after")
    def _one_form(self) -> AxisConfig:
        if (self.low is None) != (self.high is None):
            raise ValueError("a range needs both low and high")
        ranged = self.low is not None
        forms = [self.arms is not None, self.values is not None, ranged]
        if sum(forms) != 1 or (self.path is None) != (self.arms is not None):
            raise ValueError(
                "an axis needs a path with values (or, in mode random, with low and high), or arms; one of them"
            )
        if self.scale != "linear" and not ranged:
            raise ValueError(f"scale={self.scale} belongs to a range of low and high")
        if self.role == "nuisance" and self.values is None:
            raise ValueError("a nuisance axis needs path and values")
        if self.arms is not None:
            _unique([a.name for a in self.arms], "arm")
        if self.values is not None:
            _unique([json.dumps(v, sort_keys=True, default=str) for v in self.values], "value")
        self._check_range()
        return self

    def _check_range(self) -> None:
        if self.low is None or self.high is None:
            return
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low={self.low} must be above 0 on a log scale")


class PhaseConfig(Config):
    """One step of a phased study: its arms are compared on what the phases before adopted.

    `keep: k` carries the k best on to the next phase (each is crossed with that phase's arms); `when` is a mapping
    of path to value: the phase is skipped where the adopted configuration differs.
    """

    name: str
    axes: list[AxisConfig] = Field(min_length=1)
    mode: Literal["grid", "oneway"] = "grid"
    keep: int = Field(default=1, ge=1)
    when: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        return _plain_name(name)

    @model_validator(mode="after")
    def _no_nuisance(self) -> PhaseConfig:
        if any(a.role == "nuisance" for a in self.axes):
            raise ValueError("nuisance axes belong in search.axes: they are tuned in every phase")
        if any(a.low is not None for a in self.axes):
            raise ValueError(
                "low and high are ranges to sample from: they need mode random; else list values"
            )
        _unique([a.path for a in self.axes if a.path], "path")
        return self


class SelectConfig(Config):
    """How a winner is adopted. `margin` (nats): a cheaper arm is taken when it is surely not worse by more."""

    margin: Real | None = Field(default=None, gt=0)
    alpha: Real = Field(default=0.05, gt=0, lt=0.5)


class SearchConfig(Config):
    """What is compared and how.

    grid: every combination of the axes · random: `n_samples` of them · oneway: the base, and each value on its own ·
    phases: one phase after the other, each on what the ones before adopted.
    `fit: params` reads the arms as sizes of one model: the results fit L(N) = E + A N^-alpha, largest size held out.
    """

    mode: Literal["grid", "random", "oneway", "phases"]
    axes: list[AxisConfig] = Field(default_factory=list)
    phases: list[PhaseConfig] = Field(default_factory=list)
    n_samples: int | None = Field(default=None, ge=1, le=2000)
    sample_seed: int = Field(default=0, ge=0)
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    tuning_seeds: list[int] = Field(default=[1000], min_length=1)
    scheduler: Stopping = Fifo(kind="fifo")
    compete: Literal["rates", "arms"] = "rates"
    match: Literal["none", "params", "flops", "state"] = "none"
    metric: Literal["val_loss"] = "val_loss"
    fit: Literal["none", "params"] = "none"
    select: SelectConfig = SelectConfig()
    baseline: str | None = None

    @field_validator("seeds", "tuning_seeds", mode="before")
    @classmethod
    def _count_of_seeds(cls, value: Any, info: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if value > MOST_SEEDS:
                raise ValueError(f"{value} seeds; at most {MOST_SEEDS}")
            first = 0 if info.field_name == "seeds" else 1000
            return list(range(first, first + value))
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SearchConfig:
        for name in ("seeds", "tuning_seeds"):
            _unique(getattr(self, name), name.removesuffix("s").replace("_", " "))
            if not all(0 <= seed < 2**63 for seed in getattr(self, name)):
                raise ValueError(f"{name} must be from 0 to 2**63 - 1")
        shared = sorted(set(self.seeds) & set(self.tuning_seeds))
        if shared and any(a.role == "nuisance" for a in self.axes):
            raise ValueError(
                f"tuning_seeds and seeds share {shared}: a rate chosen on the seeds it is then judged by is biased; "
                "use other tuning_seeds"
            )
        if (self.mode == "phases") != bool(self.phases):
            raise ValueError("mode phases needs a list of phases, and the other modes need none")
        if self.mode == "phases" and any(a.role == "experiment" for a in self.axes):
            raise ValueError(
                "in mode phases, search.axes holds nuisance axes only; put the others into a phase"
            )
        if self.mode != "phases" and not self.axes:
            raise ValueError(f"mode {self.mode} needs at least one axis in search.axes")
        if (self.mode == "random") != (self.n_samples is not None):
            raise ValueError("n_samples belongs to mode random, and mode random needs it")
        if self.mode != "random" and any(a.low is not None for a in self.axes):
            raise ValueError(
                "low and high are ranges to sample from: they need mode random; else list values"
            )
        if self.mode == "phases" and self.baseline is not None:
            raise ValueError(
                f"baseline={self.baseline} has no effect in mode phases: a phase's baseline is what was adopted before"
            )
        _unique([p.name for p in self.phases], "phase")
        _unique([a.path for a in self.axes if a.path], "path")
        return self

    @property
    def nuisance(self) -> list[AxisConfig]:
        return [a for a in self.axes if a.role == "nuisance"]

    @property
    def experiment(self) -> list[AxisConfig]:
        return [a for a in self.axes if a.role == "experiment"]


class ResourcesConfig(RanksConfig):
    """What a trial is given. `auto`: one CPU a worker, as many trials at once as CPUs, GPUs and memory allow.

    `data_cpus` are left to Ray Data beside all trials; `auto`: one where a trial reads a stream, else none. `cluster`
    describes the GPUs that `fabric plan` predicts for; nothing else reads it. `max_concurrent` is how many trials run
    at once at most; a joined cluster is given so many even where it has no room, so that its autoscaler sees them wait.
    """

    cpus_per_worker: int | Literal["auto"] = "auto"
    data_cpus: int | Literal["auto"] = "auto"
    gpus_per_worker: Real = Field(default=0, ge=0)
    max_concurrent: int | None = Field(default=None, ge=1)
    max_retries: int = Field(default=2, ge=0)
    max_preemptions: int = Field(default=20, ge=0)
    cluster: ClusterConfig = ClusterConfig()

    @property
    def ranks(self) -> RanksConfig:
        """The processes of a trial."""
        return RanksConfig.model_validate({name: getattr(self, name) for name in RanksConfig.model_fields})

    def cpus_for_data(self, streams: bool) -> int:
        """CPUs that no trial gets. Raises ValueError for a stream without one."""
        if self.data_cpus == "auto":
            return int(streams)
        if streams and not self.data_cpus:
            raise ValueError(
                "data_cpus=0 with data.stream: Ray Data would wait for ever for a CPU that no trial holds; "
                "set data_cpus to 1 or more, or leave it out"
            )
        return self.data_cpus

    @model_validator(mode="after")
    def _some_cpus(self) -> ResourcesConfig:
        if isinstance(self.cpus_per_worker, int) and self.cpus_per_worker < 1:
            raise ValueError(f"cpus_per_worker={self.cpus_per_worker} must be at least 1")
        if isinstance(self.data_cpus, int) and self.data_cpus < 0:
            raise ValueError(f"data_cpus={self.data_cpus} must be at least 0, or auto")
        return self


class JobConfig(Config):
    """A whole job file, after its scale and overrides are laid on."""

    schema_: Literal[1] = Field(alias="schema")
    name: str
    about: str = ""
    base: BaseSection
    search: SearchConfig
    resources: ResourcesConfig = ResourcesConfig()

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        return _plain_name(name)


def _plain_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("a name has letters, digits, '.', '_' and '-', and starts with a letter or digit")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} characters, this one {len(name)}; shorten it")
    return name


def _unique(items: list[Any], what: str) -> None:
    counts = Counter(items)
    twice = sorted(str(i) for i, n in counts.items() if n > 1)
    if twice:
        raise ValueError(f"{what} {', '.join(twice)} is listed twice")


def as_path(text: str) -> tuple[str | int, ...]:
    """'search.phases.0.keep' -> ('search', 'phases', 0, 'keep')."""
    return tuple(int(k) if k.isdecimal() and k.isascii() and len(k) < 6 else k for k in text.split("."))


def base_path(text: str) -> tuple[str | int, ...]:
    """The path inside a job of an axis, an override or a `--set`: `model.…` means `base.model.…`."""
    path = as_path(text)
    return ("base", *path) if path[0] in SECTIONS else path
