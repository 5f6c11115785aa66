"""Cross entropy of rows of logits and its gradient, in the logits' own memory."""

from __future__ import annotations

from torch import Tensor

from kernels import native
from kernels.cross_entropy import cpu, reference

BACKENDS = ("auto", "reference", "cpu")
IGNORED = -100


def cross_entropy_(
    logits_CV: Tensor, targets_C: Tensor, *, gradient: bool = True, backend: str = "auto"
) -> Tensor:
    """Every row's loss (nats, fp32 [C]); with `gradient`, the logits are overwritten by softmax - onehot.

    Rows whose target is -100 have loss and gradient 0. `backend`: "auto" ("cpu", our own kernel, for CPU tensors it
    takes, else "reference") or a name of `BACKENDS`. Raises ValueError for others, and for "cpu" with tensors it
    does not take.
    """
    if backend not in BACKENDS:
        raise ValueError(f"cross entropy backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    if backend != "reference" and cpu.takes(logits_CV, targets_C):
        return cpu.cross_entropy_(logits_CV, targets_C, gradient, IGNORED)
    if backend == "cpu":
        raise native.refusal("cross_entropy_", cpu.TAKES, logits=logits_CV, targets=targets_C)
    return reference.cross_entropy_(logits_CV, targets_C, gradient, IGNORED)
