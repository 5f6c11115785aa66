"""Gradients that have no derivative of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Any]


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The first n, as functions of all."""
        return tuple(x.view_as(x) for x in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "a kernel of fabric's is differentiable once: for derivatives of gradients use its backend='reference' "
            "(of the training loss: F.cross_entropy)"
        )


def differentiable_once(backward: Backward) -> Backward:
    """A Function's backward, for derivatives of whose results a RuntimeError is raised.

    PyTorch's `once_differentiable` raises it only where the incoming gradient has a derivative. Results depend on what
    was saved too: with a constant gradient a wrong second derivative would be returned in silence.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor) -> Any:
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return results
        given = [x.detach() for x in results if x is not None]
        sources = [x for x in (*grads, *ctx.saved_tensors) if x is not None and x.requires_grad]
        marked = iter(_Refusal.apply(len(given), *given, *sources))
        return tuple(None if x is None else next(marked) for x in results)

    return wrapped
