"""How workers on this machine's CPUs scale: alpha and beta of gloo's all-reduce, fitted to measured steps.

`fabric bench workers` measures and writes them, the plan reads them. Workers beyond the cores share them: a step's
computing is divided by the smaller of the two.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fabric.data.disk import write_atomic
from fabric.planning.machine import cpu_count
from fabric.planning.parallel import Link
from kernels.folders import default_cache_root


@dataclass(frozen=True)
class Timed:
    """A median time: of a step of `model` (None: of an all-reduce alone) on `workers` that sums `n_bytes`."""

    model: str | None
    n_bytes: int
    workers: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """A least-squares value with its 95 % t-interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RingFit:
    """alpha (seconds a message), beta (seconds a byte), the seconds of each model's computing on one core.

    Of steps, both hold whatever grows with the workers or the bytes: waiting for the slowest one, and cores and memory
    that are shared. They are larger than those of all-reduces alone.
    `worst` is the largest relative distance of a measured time from the fit, `n` how many were measured, on `workers`
    that shared `cores`.
    """

    alpha: Estimate
    beta: Estimate
    computing: dict[str, Estimate]
    cores: int
    workers: tuple[int, ...]
    n: int
    worst: float

    overlap = 0.0  # what steps hide is in alpha and beta already

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**asdict(self), "workers": list(self.workers)}

    def counts(self) -> list[int]:
        return list(self.workers)

    def at_once(self, n: int) -> int:
        return min(n, self.cores)

    def exchange(self, n: int, n_bytes: float) -> float:
        return Link(max(0.0, self.alpha.value), max(0.0, self.beta.value)).ring(n, n_bytes)

    def assumptions(self) -> list[str]:
        a, b = self.alpha, self.beta
        return [
            f"{self.cores} cores, one thread a worker; more workers than cores share them",
            f"alpha {a.value * 1e3:.3g} ms [{a.low * 1e3:.3g}, {a.high * 1e3:.3g}] a message, beta {b.value * 1e9:.3g} "
            f"ns [{b.low * 1e9:.3g}, {b.high * 1e9:.3g}] a byte: fitted to {self.n} steps by `fabric bench workers`, "
            f"at most {self.worst:.0%} off",
        ]


def fit(timed: Sequence[Timed], cores: int) -> RingFit:
    """Least squares in relative error of T = computing / min(n, cores) + 2(n - 1) alpha + 2(n - 1)/n bytes beta.

    Medians, so that what the model leaves out counts in the intervals, and repeating does not narrow them. Neither
    alpha nor beta is held above zero: an interval around zero says that they were not told apart from it.
    Raises ValueError for fewer measurements than unknowns, or where workers or bytes never vary.
    """
    import numpy as np
    from scipy.stats import t as student

    models = sorted({m.model for m in timed if m.model is not None})
    rows = [
        [*(float(m.model == name) / min(m.workers, cores) for name in models), 2 * (m.workers - 1),
         2 * (m.workers - 1) / m.workers * m.n_bytes]
        for m in timed
    ]  # fmt: skip
    seconds = np.array([m.seconds for m in timed])
    design = np.array(rows).reshape(len(timed), len(models) + 2) / seconds[:, None]
    scale = np.abs(design).max(axis=0, initial=0.0)  # bytes and messages differ by orders of magnitude
    free = len(timed) - design.shape[1]
    if free < 1 or not scale.all() or np.linalg.matrix_rank(design / scale) < design.shape[1]:
        raise ValueError(
            f"{len(timed)} measurements do not determine alpha and beta; measure several sizes on 1, 2 and 4 workers"
        )
    design /= scale
    values, *_ = np.linalg.lstsq(design, np.ones(len(timed)), rcond=None)
    residuals = 1 - design @ values
    covariance = np.linalg.inv(design.T @ design) * (residuals @ residuals / free)
    half = student.ppf(0.975, free) * np.sqrt(np.diag(covariance))
    *computing, alpha, beta = (
        Estimate(float(v), float(v - h), float(v + h)) for v, h in zip(values / scale, half / scale)
    )
    worst = float(np.abs(residuals).max())
    workers = tuple(sorted({m.workers for m in timed}))
    return RingFit(alpha, beta, dict(zip(models, computing)), cores, workers, len(timed), worst)


def _memo() -> Path:
    import torch

    key = f"{platform.node()}-{cpu_count()}-{torch.__version__}".replace("/", "_")
    return default_cache_root() / "machine" / f"workers-{key}.json"


def remember(found: RingFit) -> Path:
    """Keep a fit for this machine, its cores and torch version, in the user's cache folder."""
    memo = _memo()
    write_atomic(memo, json.dumps(found.as_dict()).encode())
    return memo


def remembered() -> RingFit | None:
    """What `fabric bench workers` found on this machine; None where it has not run, or the file is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        body = json.loads(_memo().read_text())
        alpha, beta = (_estimate(body[name]) for name in ("alpha", "beta"))
        computing = {name: _estimate(value) for name, value in body["computing"].items()}
        workers = tuple(int(n) for n in body["workers"])
        return RingFit(
            alpha, beta, computing, int(body["cores"]), workers, int(body["n"]), float(body["worst"])
        )
    return None


def _estimate(body: Any) -> Estimate:
    found = Estimate(*(float(body[name]) for name in ("value", "low", "high")))
    if not all(map(math.isfinite, (found.value, found.low, found.high))):
        raise ValueError(f"{body} is no estimate")
    return found
