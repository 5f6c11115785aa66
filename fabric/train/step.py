"""One optimizer step: gradients over micro-batches, loss scaling, clipping, update.

`Stepper` is the protocol every engine speaks; the loop does not know which it has. Here it is plain torch, with
DistributedDataParallel where several ranks share a trial; `fabric.train.zero` is DeepSpeed's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fabric.train.checkpoint import load_weights, optimizer_state, unique_tensors
from fabric.train.config import TrainConfig
from fabric.train.exposed import ExposedExchange, Span
from fabric.train.group import ALONE, Group
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


class SummedLoss(nn.Module):
    """A model and its objective as one module: what the engines wrap. forward: summed nats of rows, fp32."""

    def __init__(self, model: nn.Module, train: TrainConfig, device: str) -> None:
        super().__init__()
        self.model = model
        self._sum_nll, self._device, self._precision = train.objective.sum_nll, device, train.precision

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with autocast(self._device, self._precision):
            return self._sum_nll(self.model, ids_BT, targets_BT)


class Stepper:
    """The mechanics of a step on one device of each rank of a group.

    Order: sum of scaled losses' gradients over micro-batches, sum over ranks, unscale, clip, update, new scale, zero.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train: TrainConfig,
        device: str,
        group: Group = ALONE,
    ) -> None:
        self.model, self.optimizer, self.train, self.device, self.group = (
            model,
            optimizer,
            train,
            device,
            group,
        )
        self.scaler = torch.amp.GradScaler(device) if train.precision == "fp16" else None
        if train.compile:
            compile_layers(model)
        self._loss: Any = self._wrapped(SummedLoss(model, train, device))
        self._exchange = ExposedExchange(device) if self._exchanges_after_backward() else None
        self.exposed: Span | None = None  # of the last step's exchange of gradients
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._peaks = [group["lr"] for group in optimizer.param_groups]

    def _wrapped(self, loss: SummedLoss) -> nn.Module:
        if self.group.world == 1:
            return loss
        # Rows of all ranks are of one size, so buckets are the same; buffers (rotary tables) never change.
        return nn.parallel.DistributedDataParallel(
            loss, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def _exchanges_after_backward(self) -> bool:
        """Whether ranks exchange gradients where the wait for it can be told from the backward pass."""
        return self.group.world > 1

    def gradients(self, ids_BT: Tensor, targets_BT: Tensor, micro_batch_size: int) -> Tensor:
        """Accumulate the gradients of the global batch's mean loss; returns that loss, an fp32 scalar (nats/token).

        The rows are this rank's, as many as every other's.
        """
        B, T = targets_BT.shape
        count = B * self.group.world * self.train.objective.n_targets(T)
        total: Tensor | None = None
        parts = list(zip(ids_BT.split(micro_batch_size), targets_BT.split(micro_batch_size), strict=True))
        for number, (ids_bT, targets_bT) in enumerate(parts, 1):
            is_last = number == len(parts)
            with self._accumulating(is_last):
                nll = self._loss(ids_bT, targets_bT) / count
                if self._exchange is not None and is_last:
                    self._exchange.watch(nll)
                self._backward(nll)
            total = nll.detach() if total is None else total + nll.detach()
        if self._exchange is not None:
            self.exposed = self._exchange.summed()
        assert total is not None
        return self.group.sum_(total)

    def _accumulating(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Ranks exchange gradients with the last micro-batch alone."""
        if self.group.world == 1 or is_last:
            return contextlib.nullcontext()
        return self._loss.no_sync()

    def _backward(self, nll: Tensor) -> None:
        if self.group.world > 1:
            nll = nll * self.group.world  # the wrapper takes the ranks' mean
        (nll if self.scaler is None else self.scaler.scale(nll)).backward()

    def update(self, multiplier: float) -> Tensor:
        """Clip and apply the gradients at `multiplier` times the peak rate; returns their norm before clipping.

        In fp16, a step whose gradients overflowed (norm not finite) is skipped and the loss scale falls.
        """
        for group, peak in zip(self.optimizer.param_groups, self._peaks):
            group["lr"] = peak * multiplier
        norm = self._apply()
        self.forget()
        return norm

    def _apply(self) -> Tensor:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return norm

    def _clip(self) -> Tensor:
        if self.train.clip_norm is not None:
            return nn.utils.clip_grad_norm_(self._parameters, self.train.clip_norm, foreach=True)
        grads = [p.grad for p in self._parameters if p.grad is not None]
        return nn.utils.get_total_norm(grads, foreach=True)

    def forget(self) -> None:
        """Drop all gradients, of a finished step or of one to be redone."""
        self.optimizer.zero_grad(set_to_none=True)

    # ---- what a checkpoint holds: the same whatever the engine and the number of ranks

    def weights(self) -> dict[str, Tensor]:
        """Every unique tensor whole, by name; on rank 0 (elsewhere it may be empty)."""
        return {name: t.detach() for name, t in unique_tensors(self.model).items()}

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state as torch's own `state_dict` of one process has it; on rank 0."""
        return self.optimizer.state_dict()

    def load(self, files: Mapping[str, bytes]) -> None:
        """Put a checkpoint's weights and optimizer state in place; ValueError when it is of another architecture."""
        load_weights(files, self.model)
        self.optimizer.load_state_dict(optimizer_state(files))

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The model with every parameter in full on this rank."""
        yield self.model
