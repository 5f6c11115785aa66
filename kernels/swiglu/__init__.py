"""silu(gate) * up, the gated unit of SwiGLU."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import native
from kernels.swiglu import cpu, lean, reference

BACKENDS = ("auto", "reference", "cpu", "lean")


def swiglu(gate: Tensor, up: Tensor, *, backend: str = "auto") -> Tensor:
    """silu(gate) * up, elementwise; see `reference`.

    `backend`: "auto" (under torch.compile, which fuses it, "reference"; else "cpu", our own kernels, for CPU tensors
    they take, and "lean" elsewhere) or a name of `BACKENDS`. Raises ValueError for others, and for "cpu" with tensors
    it does not take.
    """
    if backend not in BACKENDS:
        raise ValueError(f"swiglu backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    if backend == "reference" or (backend == "auto" and torch.compiler.is_compiling()):
        return reference.swiglu(gate, up)
    if backend != "lean" and cpu.takes(gate, up):
        return cpu.swiglu(gate, up)
    if backend == "cpu":
        raise native.refusal("swiglu", cpu.TAKES, gate=gate, up=up)
    # The lean form neither broadcasts nor has a forward derivative.
    plain = backend == "auto" and (gate.shape != up.shape or gate.dtype != up.dtype or native.watched())
    return (reference if plain else lean).swiglu(gate, up)
