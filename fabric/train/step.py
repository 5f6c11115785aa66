"""One optimizer step: gradients over micro-batches, loss scaling, clipping, update."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from fabric.train.config import TrainConfig
from kernels import native
from models.residual import Block

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context forward passes run in: autocast for bf16 and fp16, nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=AUTOCAST[precision])


def compile_layers(model: nn.Module) -> None:
    """Let every layer run as compiled code: layers are alike, so one compilation serves all of a model."""
    native.attention_dtypes()  # compiled code cannot look for kernels itself
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


class Stepper:
    """The mechanics of a step on one device.

    Order: sum of scaled losses' gradients over micro-batches, unscale, clip, update, new scale, zero.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, train: TrainConfig, device: str
    ) -> None:
        self.model, self.optimizer, self.train, self.device = model, optimizer, train, device
        self.scaler = torch.amp.GradScaler(device) if train.precision == "fp16" else None
        if train.compile:
            compile_layers(model)
        self._sum_nll = train.objective.sum_nll
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._peaks = [group["lr"] for group in optimizer.param_groups]

    def gradients(self, ids_BT: Tensor, targets_BT: Tensor, micro_batch_size: int) -> Tensor:
        """Accumulate the gradients of the batch's mean loss; returns that loss, an fp32 scalar (nats/token)."""
        B, T = targets_BT.shape
        count = B * self.train.objective.n_targets(T)
        total: Tensor | None = None
        for ids_bT, targets_bT in zip(ids_BT.split(micro_batch_size), targets_BT.split(micro_batch_size)):
            with autocast(self.device, self.train.precision):
                nll = self._sum_nll(self.model, ids_bT, targets_bT) / count
            (nll if self.scaler is None else self.scaler.scale(nll)).backward()
            total = nll.detach() if total is None else total + nll.detach()
        assert total is not None
        return total

    def update(self, multiplier: float) -> Tensor:
        """Clip and apply the gradients at `multiplier` times the peak rate; returns their norm before clipping.

        In fp16, a step whose gradients overflowed (norm not finite) is skipped and the loss scale falls.
        """
        for group, peak in zip(self.optimizer.param_groups, self._peaks):
            group["lr"] = peak * multiplier
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.forget()
        return norm

    def _clip(self) -> Tensor:
        if self.train.clip_norm is not None:
            return nn.utils.clip_grad_norm_(self._parameters, self.train.clip_norm, foreach=True)
        grads = [p.grad for p in self._parameters if p.grad is not None]
        return nn.utils.get_total_norm(grads, foreach=True)

    def forget(self) -> None:
        """Drop all gradients, of a finished step or of one to be redone."""
        self.optimizer.zero_grad(set_to_none=True)
