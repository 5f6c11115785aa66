"""Optimizers, one file each."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# What torch wraps so that its compiler leaves it alone, importing the compiler for that: two seconds and 100 MB.
_WRAPPED = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices with weight decay, vectors (norms, biases) without."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


@functools.cache
def without_compiler(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The same optimizer, bit for bit, whose methods do not load torch's compiler; it is not for compiled code."""
    import torch

    plain = {name: inspect.unwrap(getattr(kind, name)) for name in _WRAPPED}
    plain["step"] = torch.no_grad()(plain["step"])
    return type(kind.__name__, (kind,), plain)
