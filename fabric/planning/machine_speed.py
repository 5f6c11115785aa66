"""What `precision: auto` and `compile: auto` become on this machine: measured in a second, then remembered."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from fabric.data.disk import write_atomic
from kernels.folders import default_cache_root

if TYPE_CHECKING:
    from fabric.train.config import TrainConfig
    from models.config import ModelConfig

BF16_PAYS = 1.5  # bf16's products must be this much faster: rounding and casts take their part of the gain
SECONDS_EACH = 0.4
# A layer's first compilation, both directions, and the share of a step that compiled layers save. With our own kernels
# on a CPU compiled layers were no faster at width 256, and not surely at 576 (`fabric bench step`). Without them, and
# on GPUs, the share is PyTorch's fusion: an assumption, not measured.
COMPILE_SECONDS = 35.0
SAVED = 0.25
SHARE_OF_PRODUCTS = 0.5  # of the products' speed that a training step reaches


@dataclass(frozen=True)
class Products:
    """FLOP/s of matrix products by precision, and whether CPU kernels of our own are there."""

    fp32: float
    bf16: float
    own_kernels: bool

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        return "bf16" if self.bf16 >= BF16_PAYS * self.fp32 else "fp32"


@cache
def products(device: str, threads: int) -> Products:
    """Measured once for a machine, its libraries and a number of threads; kept in the user's cache folder."""
    import torch

    from kernels import native

    where = torch.cuda.get_device_name().replace(" ", "-") if device == "cuda" else f"cpu-{threads}"
    key = f"{platform.node()}-{where}-{torch.__version__}-{native.name()}".replace("/", "_")
    memo = default_cache_root() / "machine" / f"products-{key}.json"
    try:
        return _as_written(json.loads(memo.read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            fp32, bf16 = (_flops_per_second(dtype, device) for dtype in (torch.float32, torch.bfloat16))
        finally:
            torch.set_num_threads(before)
    found = Products(fp32, bf16, own_kernels=device == "cpu" and native.library() is not None)
    with contextlib.suppress(OSError):  # else it is measured again next time
        write_atomic(memo, json.dumps(found.__dict__).encode())
    return found


def _as_written(body: Any) -> Products:
    """What a memo says. Raises ValueError where it is no measurement (NaN would compare as slow)."""
    fp32, bf16, own = body["fp32"], body["bf16"], body["own_kernels"]
    if not all(isinstance(v, float) and 0 < v < math.inf for v in (fp32, bf16)) or not isinstance(own, bool):
        raise ValueError(f"{body} is no measurement")
    return Products(fp32, bf16, own)


def _flops_per_second(dtype: object, device: str) -> float:
    """The best of repeated products of square matrices; a CPU without a unit for 16 bits takes long for large ones."""
    import torch

    n = 1024 if device == "cuda" else 512
    x = torch.randn(n, n, device=device).to(dtype)  # type: ignore[call-overload]
    best, until = 0.0, time.perf_counter() + SECONDS_EACH
    while best == 0.0 or time.perf_counter() < until:
        began = time.perf_counter()
        y = x @ x
        float(y[0, 0])  # waits for a GPU
        best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


def resolved(
    train: TrainConfig,
    model: ModelConfig,
    seq_len: int,
    device: str,
    threads: int,
    n_asked: float | None = None,
) -> TrainConfig:
    """The training section with every `auto` decided; unchanged without one."""
    if train.precision != "auto" and train.compile != "auto":
        return train
    from models import n_params

    speed = products(device, threads)
    precision = speed.precision if train.precision == "auto" else train.precision
    compiled = train.compile
    if compiled == "auto":
        tokens = train.n_tokens(n_params(model))
        flops = 3 * train.objective.flops_per_token(model, seq_len, n_asked) * tokens
        rate = SHARE_OF_PRODUCTS * (speed.fp32 if precision == "fp32" else speed.bf16)
        compiled = not speed.own_kernels and flops / rate * SAVED > COMPILE_SECONDS
    return train.model_copy(update={"precision": precision, "compile": compiled})
