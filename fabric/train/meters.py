"""What a run's per-step history says: speed and stability figures (specs/ternary_ablation.md §6.4)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

WARMUP_STEPS = 10  # of an attempt: allocations, caches and autotuning are not the speed
WINDOW = 51  # of the running median

# Dense bf16/fp16 peaks in FLOP/s from the makers' data sheets; a device that is not here has no known peak.
PEAK_FLOPS_16BIT = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
}


class History:
    """Loss, gradient norm, duration and exposed exchange of every step since step 0; part of the checkpoint.

    Kept whole, so that the figures neither depend on the log cadence nor on how often a run was interrupted.
    Times (in seconds) are NaN for the first `WARMUP_STEPS` steps of an attempt; `exposed`, the wait for other ranks'
    gradients (`fabric.train.exposed`), also where there are none or it is not timed. 16 bytes a step.
    """

    def __init__(self, columns: Iterable[Iterable[float]] = ((), (), (), ())) -> None:
        self.loss, self.grad_norm, self.seconds, self.exposed = (array("f", c) for c in columns)

    def __len__(self) -> int:
        return len(self.loss)

    def append(self, loss: float, grad_norm: float, seconds: float, exposed: float) -> None:
        self.loss.append(loss)
        self.grad_norm.append(grad_norm)
        self.seconds.append(seconds)
        self.exposed.append(exposed)

    def state(self) -> torch.Tensor:
        """fp32 [4, steps]."""
        columns = [self.loss, self.grad_norm, self.seconds, self.exposed]
        return torch.from_numpy(np.array(columns, dtype=np.float32))

    @classmethod
    def restore(cls, state: torch.Tensor) -> History:
        columns = list(state.numpy())
        if len(columns) == 3:  # a checkpoint from before exchanges were timed
            columns.append(np.full_like(columns[0], np.nan))
        return cls(columns)


def speed(
    history: History, tokens_per_step: int, flops_per_token: float, peak_flops: float | None
) -> dict[str, float | None]:
    """`tokens_per_second` = tokens of a batch / median step time, and what follows from it.

    None before there is a step outside the warm-up; `mfu` is None where the device's peak is unknown.
    """
    seconds = np.asarray(history.seconds)
    seconds = seconds[~np.isnan(seconds)]
    if not len(seconds):
        return {"tokens_per_second": None, "flops_per_second": None, "mfu": None}
    tokens_per_second = tokens_per_step / float(np.median(seconds))
    flops_per_second = tokens_per_second * flops_per_token
    return {
        "tokens_per_second": tokens_per_second,
        "flops_per_second": flops_per_second,
        "mfu": flops_per_second / peak_flops if peak_flops else None,
    }


def exposed_seconds(history: History) -> float | None:
    """The median of a step's exposed exchange of gradients on this rank; None where none was timed."""
    seconds = np.asarray(history.exposed)
    seconds = seconds[~np.isnan(seconds)]
    return float(np.median(seconds)) if len(seconds) else None


def exchange(history: History, every_rank: Sequence[float | None]) -> dict[str, float | None]:
    """The exposed exchange of gradients: the mean of the ranks' medians, and its share of this rank's median step."""
    known = [s for s in every_rank if s is not None]
    if not known:
        return dict.fromkeys(("exposed_allreduce_seconds", "exposed_allreduce_fraction"))
    mean = sum(known) / len(known)
    step = np.asarray(history.seconds)
    return {
        "exposed_allreduce_seconds": mean,
        "exposed_allreduce_fraction": mean / float(np.median(step[~np.isnan(step)])),
    }


def peak_flops(device: str, precision: str) -> float | None:
    """The device's peak at that precision, or None when it is not known."""
    if device != "cuda" or precision == "fp32":
        return None
    return PEAK_FLOPS_16BIT.get(torch.cuda.get_device_name())


def stability(history: History, clip_norm: float | None) -> dict[str, float | None]:
    """Smoothness, spikes, total variation and gradient-norm figures; None where a run is too short for one.

    With r_t = L_t - median of the 51 losses around t: smoothness is r's standard deviation over the last half of
    the run, spikes counts r_t > 6 * 1.4826 * MAD(r) over the whole run.
    """
    loss = np.asarray(history.loss, dtype=np.float64)
    return {**_smoothness(loss), **_variation(loss), **_gradients(history, clip_norm)}


def _smoothness(loss: NDArray[np.float64]) -> dict[str, float | None]:
    half = WINDOW // 2
    if len(loss) < WINDOW or not np.isfinite(loss).all():
        return {"loss_smoothness": None, "loss_spikes": None}
    # Only steps with a full window: a cut one at the start would call the first descent a spike.
    median = np.median(np.lib.stride_tricks.sliding_window_view(loss, WINDOW), axis=-1)
    r = loss[half:-half] - median
    last_half = r[max(0, len(loss) // 2 - half) :]
    mad = float(np.median(np.abs(r - np.median(r))))
    return {"loss_smoothness": float(last_half.std()), "loss_spikes": int((r > 6 * 1.4826 * mad).sum())}


def _variation(loss: NDArray[np.float64]) -> dict[str, float | None]:
    if len(loss) < 2 or not np.isfinite(loss).all() or loss[0] <= loss[-1]:
        return {"loss_total_variation": None}  # a loss that did not fall has no such ratio
    return {"loss_total_variation": float(np.abs(np.diff(loss)).sum() / (loss[0] - loss[-1]))}


def _gradients(history: History, clip_norm: float | None) -> dict[str, float | None]:
    norm = np.asarray(history.grad_norm, dtype=np.float64)
    norm = norm[np.isfinite(norm)]
    keys = ("grad_norm_median", "grad_norm_p95", "grad_norm_max_ratio", "clip_fraction")
    if not len(norm):
        return dict.fromkeys(keys)
    median = float(np.median(norm))
    clipped = float((norm > clip_norm).mean()) if clip_norm is not None else 0.0
    ratio = float(norm.max()) / median if median > 0 else math.inf
    return dict(zip(keys, (median, float(np.quantile(norm, 0.95)), ratio, clipped)))
