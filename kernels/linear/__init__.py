"""Products of one input with several matrices: the projections of a layer that read the same x."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import native
from kernels.linear import cpu, reference, shared

BACKENDS = ("auto", "reference", "shared", "cpu")


def linears(x: Tensor, *weights: Tensor, backend: str = "auto") -> tuple[Tensor, ...]:
    """x (…, K) times the transpose of every weight (N_i, K): outputs (…, N_i), in autocast's dtype where it is on.

    `backend`: "auto" ("cpu", our own kernel, for up to 8 rows without gradients; "reference" under torch.compile; else
    "shared", one pass over x's gradient) or a name of `BACKENDS`. Raises ValueError for others, and for "cpu" with
    tensors it does not take.
    """
    if backend not in BACKENDS:
        raise ValueError(f"linears backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weights = x.to(dtype), tuple(w.to(dtype) for w in weights)
    if backend == "auto":
        backend = _chosen(x, weights)
    elif backend == "cpu" and not cpu.takes(x, weights):
        given = {f"weight {number}": w for number, w in enumerate(weights)}
        raise native.refusal("linears", cpu.TAKES, x=x, **given)
    if backend == "reference":
        return reference.linears(x, *weights)
    return (cpu if backend == "cpu" else shared).linears(x, *weights)


def _chosen(x: Tensor, weights: tuple[Tensor, ...]) -> str:
    if torch.compiler.is_compiling():
        return "reference"
    if not torch.is_grad_enabled():
        return "cpu" if cpu.takes(x, weights) else "reference"
    if len(weights) < 2 or x.ndim < 2 or native.watched():
        return "reference"
    return "shared"
