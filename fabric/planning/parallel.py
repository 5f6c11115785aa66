"""What several workers a trial would be worth: a prediction by the alpha-beta model of a ring all-reduce.

A ring of n workers sends 2(n - 1) messages one after the other, each 1/n of the data (Patarasuk and Yuan 2009):
t = 2(n - 1) alpha + 2(n - 1)/n * bytes * beta. Over several nodes: reduce-scatter inside each node, a ring over the
nodes for each GPU's share, all-gather inside each node. Gradients are summed once a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from fabric.job.units import Real
from models.parts import Config

GRADIENT_BYTES = 4  # a parameter: gradients are fp32 in every precision
BACKWARD_SHARE = 2 / 3  # of a step's computing

# Speed-ups of the document this project began with, for a model of 110 M parameters. No measurement, no hardware and no
# batch size is behind them: they are shown beside a prediction as what was claimed.
CLAIMED = {2: 1.95, 4: 3.85, 8: 7.5, 16: 14.2, 128: 110.0}


@dataclass(frozen=True)
class Link:
    """alpha: seconds a message; beta: seconds a byte."""

    alpha: float
    beta: float

    def ring(self, n: int, n_bytes: float) -> float:
        """Seconds of a ring all-reduce over `n` workers; reduce-scatter and all-gather take half of it each."""
        return 2 * (n - 1) * self.alpha + 2 * (n - 1) / n * n_bytes * self.beta


class Workers(Protocol):
    """What workers compute on and send over."""

    @property
    def overlap(self) -> float:
        """The share of the backward pass that hides the exchange."""

    def counts(self) -> list[int]:
        """The numbers of workers that are predicted."""

    def at_once(self, n: int) -> int:
        """How many of `n` workers compute at the same time, each as fast as one alone."""

    def exchange(self, n: int, n_bytes: float) -> float:
        """Seconds to sum `n_bytes` over `n` workers."""

    def assumptions(self) -> list[str]:
        """What a prediction takes for granted, in sentences."""


class ClusterConfig(Config):
    """The GPUs and links a prediction is made for; every figure can be set under `resources.cluster`.

    The defaults are published figures of DGX A100 nodes. `flops_per_gpu`: dense bf16 peak (NVIDIA's A100 data sheet).
    `mfu`: the share of it that training reaches on one GPU (torchtitan reports 0.33 to 0.39 for Llama 3 8B on H100s;
    small models reach less). `node_bytes_per_second`: NVLink's bus bandwidth of an all-reduce, `node_seconds` and
    `network_seconds`: the latency a message of NVLink and the network (NCCL's own model, src/graph/tuning.cc: at most
    235 GB/s on A100s; 3.4 and 14 us for Ring, Simple). `network_bytes_per_second`: one InfiniBand adapter of 200
    Gbit/s a GPU (DGX A100 data sheet). `overlap`: the share of the backward pass that hides the exchange; with 0, the
    worst case, all of it is exposed.
    """

    gpus_per_node: int = Field(default=8, ge=1)
    flops_per_gpu: Real = Field(default=312e12, gt=0)
    mfu: Real = Field(default=0.35, gt=0, le=1)
    node_bytes_per_second: Real = Field(default=235e9, gt=0)
    node_seconds: Real = Field(default=3.4e-6, ge=0)
    network_bytes_per_second: Real = Field(default=25e9, gt=0)
    network_seconds: Real = Field(default=14e-6, ge=0)
    overlap: Real = Field(default=0.0, ge=0, le=1)

    def counts(self) -> list[int]:
        """1 to 128, those that fill whole nodes."""
        return [
            n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= self.gpus_per_node or not n % self.gpus_per_node
        ]

    def at_once(self, n: int) -> int:
        return n

    def exchange(self, n: int, n_bytes: float) -> float:
        """Raises ValueError for workers that leave one of several nodes partly used."""
        node = Link(self.node_seconds, 1 / self.node_bytes_per_second)
        network = Link(self.network_seconds, 1 / self.network_bytes_per_second)
        each = self.gpus_per_node
        if n <= each:
            return node.ring(n, n_bytes)
        if n % each:
            raise ValueError(
                f"{n} workers do not fill nodes of {each}; use one node, or a multiple of {each}"
            )
        return node.ring(each, n_bytes) + network.ring(n // each, n_bytes / each)

    def assumptions(self) -> list[str]:
        hidden = f"{self.overlap:.0%} of the backward pass hides it" if self.overlap else "nothing hides it"
        node, network = self.node_bytes_per_second / 1e9, self.network_bytes_per_second / 1e9
        return [
            f"each GPU computes {self.mfu:g} of {self.flops_per_gpu / 1e12:g} TFLOP/s at any batch; no stragglers, no "
            "wait for data",
            f"fp32 gradients are summed once a step, by rings; {hidden}",
            f"{node:g} GB/s and {self.node_seconds * 1e6:g} us a message inside nodes of {self.gpus_per_node}, "
            f"{network:g} GB/s a GPU and {self.network_seconds * 1e6:g} us between them",
            f"{self._given()}published figures of A100s (NVIDIA's data sheets, NCCL's tuning table, torchtitan's share "
            "of the peak), none measured here; set yours under resources.cluster",
        ]

    def _given(self) -> str:
        """Which figures are not the defaults."""
        given = [
            name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default
        ]
        return f"the job's own {', '.join(given)}; for the rest " if given else ""


@dataclass(frozen=True)
class Step:
    """A step of a trial as one worker would take it, `seconds` long; the job has `workers`."""

    arm: str
    n_params: int
    seconds: float
    batch_size: int
    workers: int


@dataclass(frozen=True)
class Point:
    """`workers` together: seconds of an exchange and of a step, speed-ups over one worker.

    `step` and `speedup` are at the same global batch, None where it cannot be divided; `weak_speedup` is in tokens a
    second, at the batch per worker that the job has.
    """

    workers: int
    exchange: float
    step: float | None
    speedup: float | None
    weak_speedup: float
    claimed: float | None


@dataclass(frozen=True)
class Prediction:
    """A model's word, not a measurement."""

    where: str
    step: Step
    points: list[Point]
    assumptions: list[str]


def step_seconds(computing: float, exchange: float, overlap: float) -> float:
    """Computing, and of the exchange what the backward pass does not hide."""
    return computing + max(0.0, exchange - overlap * BACKWARD_SHARE * computing)


def speedup(n: int, seconds: float, n_bytes: float, workers: Workers) -> float:
    """T1 / Tn at the same global batch, whose step takes one worker `seconds`."""
    computing = seconds / workers.at_once(n)
    return seconds / step_seconds(computing, workers.exchange(n, n_bytes), workers.overlap)


def weak_speedup(n: int, seconds: float, n_bytes: float, workers: Workers) -> float:
    """n T1 / Tn at the same batch per worker, which takes one worker `seconds`."""
    computing = seconds * n / workers.at_once(n)
    return n * seconds / step_seconds(computing, workers.exchange(n, n_bytes), workers.overlap)


def predict(where: str, step: Step, workers: Workers, claimed: bool) -> Prediction:
    """The step on every number of workers; `claimed` lays the claims beside it."""
    n_bytes, share = GRADIENT_BYTES * step.n_params, step.seconds / step.workers
    points = []
    for n in workers.counts():
        gain = None if step.batch_size % n else speedup(n, step.seconds, n_bytes, workers)
        points.append(
            Point(
                n,
                workers.exchange(n, n_bytes),
                None if gain is None else step.seconds / gain,
                gain,
                weak_speedup(n, share, n_bytes, workers),
                CLAIMED.get(n) if claimed else None,
            )
        )
    return Prediction(where, step, points, workers.assumptions())
