"""One training step of ours and of transformers': the same weights, tokens and optimizer, each in its process.

Shapes: B batch, T tokens, V vocabulary; rows_BT1 holds the inputs and, one further, the targets.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fabric.bench.work import timed

if TYPE_CHECKING:
    from torch import Tensor

    from models import CausalLM

OURS, THEIRS = "ours", "theirs"
N_FIRST = 3  # steps that are compared, and in which everything is compiled
LR, BETAS, EPS = (
    1e-3,
    (0.9, 0.999),
    1e-8,
)  # torch's and the Trainer's defaults; no weight decay, like the Trainer


@dataclass(frozen=True)
class Training:
    """A side: whose code, its precision, compiled or not; and what it trains, as plain data."""

    whose: str
    precision: str
    compiled: bool
    model: Mapping[str, Any]
    batch: int
    seq_len: int
    threads: int

    @property
    def label(self) -> str:
        return f"{self.whose} {self.precision} {'compiled' if self.compiled else 'eager'}"

    @property
    def tokens(self) -> int:
        """Predicted tokens of a step."""
        return self.batch * self.seq_len

    def task(self) -> dict[str, Any]:
        return asdict(self)

    def rows_BT1(self, step: int) -> Tensor:
        """The tokens of a step, some frequent and most rare, so that there is something to learn."""
        import torch

        generator = torch.Generator().manual_seed(step)
        shape = (self.batch, self.seq_len + 1)
        return (torch.rand(shape, generator=generator) ** 3 * self.model["vocab_size"]).long()


def decoder(width: int, n_layers: int, seq_len: int, vocab_size: int) -> dict[str, Any]:
    """A Llama both sides have: heads of 64 (32 up to width 128), SwiGLU of 8/3 of the width, tied embeddings."""
    return {
        "vocab_size": vocab_size,
        "d_model": width,
        "n_layers": n_layers,
        "max_seq_len": seq_len,
        "mixer": {"kind": "mha", "n_heads": width // (32 if width <= 128 else 64)},
        "ffn": {"kind": "swiglu", "d_ff": 64 * round(8 / 3 * width / 64)},
        "init": {"std": None},  # wide enough that a wrong rotation or norm shows in the loss
    }


class Ours:
    """The step of a trial: `fabric.train.step` in a process set up as a trial sets it up; with others in its group."""

    def __init__(self, training: Training) -> None:
        from fabric.data.config import DataConfig
        from fabric.planning.trial import TrialSpec
        from fabric.train import process
        from fabric.train.config import TrainConfig
        from fabric.train.group import Group
        from fabric.train.step import Stepper

        self.batch = training.batch
        train = {
            "tokens": training.tokens,
            "batch_size": training.batch,
            "optimizer": {"kind": "adamw", "lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": 0.0},
            "schedule": {"kind": "constant"},
            "precision": training.precision,
            "compile": training.compiled,
        }
        spec = TrialSpec(
            model=training.model,
            data=DataConfig(seq_len=training.seq_len),
            data_key="none",
            train=TrainConfig.model_validate(train),
            seed=0,
            threads=training.threads,
        )
        process.settle(spec)
        self.model = initial(training).train()
        self.optimizer = spec.train.optimizer.build(self.model)
        self.stepper = Stepper(self.model, self.optimizer, spec.train, spec.device, Group.here())

    def step(self, rows_BT1: Tensor) -> tuple[float, float]:
        """Loss in nats a token, and the gradients' norm before clipping."""
        from torch.profiler import record_function

        with record_function("forward and backward"):
            loss = self.stepper.gradients(rows_BT1[:, :-1], rows_BT1[:, 1:], self.batch)
        with record_function("clip and update"):
            norm = self.stepper.update(1.0)
        return float(loss), float(norm)


class Theirs:
    """transformers' model as its documentation trains it on a CPU, with what the Trainer sets.

    Attention by SDPA, no cache, torch's fused AdamW, clipping by `clip_grad_norm_`, bf16 by autocast.
    """

    def __init__(self, training: Training) -> None:
        import torch

        from models import to_hf

        torch.set_num_threads(training.threads)
        self.training = training
        ours = initial(training).train()
        self.model = to_hf(ours)
        del ours
        gc.collect()
        self.model.set_attn_implementation("sdpa")
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True
        )
        self.run = torch.compile(self.model) if training.compiled else self.model

    def step(self, rows_BT1: Tensor) -> tuple[float, float]:
        """As `Ours.step`. The targets are handed over shifted, so that both sides predict B*T tokens."""
        import torch
        from torch.profiler import record_function

        x_BT, y_BT = rows_BT1[:, :-1], rows_BT1[:, 1:].contiguous()
        with record_function("forward and backward"):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.training.precision == "bf16"):
                loss = self.run(input_ids=x_BT, labels=y_BT, shift_labels=y_BT, use_cache=False).loss
            loss.backward()
        with record_function("clip and update"):
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(loss), float(norm)


def initial(training: Training) -> CausalLM:
    """The weights both sides start from."""
    from models import ModelConfig, build

    return build(ModelConfig.model_validate(training.model), seed=0)


def made(training: Training) -> Ours | Theirs:
    """The side, ready for its first step."""
    return Ours(training) if training.whose == OURS else Theirs(training)


def serve(**task: Any) -> Generator[dict[str, Any], Mapping[str, Any], None]:
    """A side in its process: first steps with losses, norms and seconds; then the seconds of as many as asked for."""
    training = Training(**task)
    side = made(training)
    first: dict[str, list[float]] = {"loss": [], "norm": [], "seconds": []}
    for step in range(N_FIRST):
        rows_BT1 = training.rows_BT1(step)
        began = time.perf_counter()
        loss, norm = side.step(rows_BT1)
        first["seconds"].append(time.perf_counter() - began)
        first["loss"].append(loss)
        first["norm"].append(norm)
    request = yield first
    step = N_FIRST
    while True:
        batches = [training.rows_BT1(step + i) for i in range(request["steps"])]
        step += len(batches)
        began = time.perf_counter()
        for rows_BT1 in batches:
            side.step(rows_BT1)
        request = yield {"seconds": time.perf_counter() - began}


def peak_memory(**task: Any) -> dict[str, Any]:
    """Bytes a side's steps take at most beside what the process held when everything was imported; and the losses.

    Several steps: in the first one the optimizer has no state yet. Raises RuntimeError where the system does not tell.
    """
    import torch._dynamo  # noqa: F401 (torch's own optimizers load it when the first one is made)
    import transformers.models.llama.modeling_llama  # noqa: F401

    from fabric.train.memory import PeakMemory

    training = Training(**task)
    peak = PeakMemory("cpu")
    before = peak.read()
    side = made(training)
    losses = [side.step(training.rows_BT1(step))[0] for step in range(N_FIRST)]
    highest = peak.read()
    if before is None or highest is None:
        raise RuntimeError(
            "this system does not tell a process's peak memory: /proc/self/clear_refs is not writable"
        )
    return {"bytes": highest - before, "losses": losses}


def matmul_speed(threads: int, size: int, times: int) -> Generator[float | None, str, None]:
    """GFLOP/s of a square matrix product in the precision asked for, the best of `times`."""
    import torch

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator) for _ in range(2))
    pairs = {"fp32": (a, b), "bf16": (a.bfloat16(), b.bfloat16())}
    precision = yield None
    while True:
        left, right = pairs[precision]
        out = torch.mm(left, right)
        seconds = [timed(partial(torch.mm, left, right, out=out)) for _ in range(times)]
        precision = yield 2 * size**3 / min(seconds) / 1e9
