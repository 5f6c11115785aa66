"""DeepSpeed's engine: ZeRO stages 0 to 3 (arXiv 1910.02054) with the meaning of the torch engine.

Parameters stay fp32 and forward passes run under our autocast, so a step is the torch engine's to rounding (5e-6). A
checkpoint is the torch engine's too: tensors and moments are gathered, and any engine on any number of ranks goes on.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fabric.train.checkpoint import load_weights, optimizer_state, unique_tensors
from fabric.train.group import Group
from fabric.train.start import unfilled
from fabric.train.step import Stepper, SummedLoss
from models.residual import Block

if TYPE_CHECKING:
    from fabric.planning.trial import TrialSpec


def _deepspeed() -> Any:
    """The library, quiet, and without its shared-memory op: gloo serves CPUs, and nothing has to be compiled."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import logging

    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls torch's collectives by names that torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _as_it_is(model: Any = None, **_: Any) -> Any:
    return model if model is not None else _as_it_is


@contextlib.contextmanager
def _compiling_nothing() -> Iterator[None]:
    """While DeepSpeed imports its optimizers: it decorates a function of Muon, which we never call, with
    `torch.compile`, and that imports the compiler: half of what starting a rank takes."""
    original = torch.compile
    torch.compile = _as_it_is
    try:
        yield
    finally:
        torch.compile = original


class ZeroStepper(Stepper):
    """The mechanics of a step by DeepSpeed; every rank of the group takes part in every call.

    DeepSpeed takes the model over with the first step, so a checkpoint is loaded before.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, trial: TrialSpec, group: Group
    ) -> None:
        self.trial, self.stage = trial, trial.ranks.zero_stage
        self.engine: Any = None
        # As torch's own state_dict numbers and describes them; DeepSpeed puts flat partitions in their place.
        self._described = optimizer.state_dict()["param_groups"]
        self._members = [list(g["params"]) for g in optimizer.param_groups]
        self._loaded: dict[str, Any] | None = None
        super().__init__(model, optimizer, trial.train, trial.device, group)

    def _wrapped(self, loss: SummedLoss) -> nn.Module:
        return loss

    def _exchanges_after_backward(self) -> bool:
        return self.group.world > 1 and self.stage < 2

    def _start(self) -> None:
        deepspeed = _deepspeed()
        if self.stage == 3:
            # A layer's parameters are gathered together: its kernels read weights of several modules at once.
            deepspeed.utils.set_z3_leaf_modules(self._loss, [Block])
            # What is read without its module's call (tied output matrices, positions) is gathered for the whole step.
            for parameter in self._outside_layers():
                deepspeed.zero.register_external_parameter(self._loss, parameter)
        with _compiling_nothing():
            self.engine, self._sharded, _, _ = deepspeed.initialize(
                model=self._loss, optimizer=self.optimizer, config=self._config(), dist_init_required=False
            )
        self._loss = self.engine
        if self._loaded is not None:
            self._put(self._loaded)
            self._loaded = None

    def _outside_layers(self) -> list[nn.Parameter]:
        layers = [m for m in self.model.modules() if isinstance(m, Block)]
        inside = {id(p) for layer in layers for p in layer.parameters()}
        return [p for p in self.model.parameters() if id(p) not in inside]

    def _config(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage}
        if self.trial.ranks.offload == "cpu":
            zero["offload_optimizer"] = {"device": "cpu"}
        return {
            # Rows are ours to split, and the gradients of each part are scaled already.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_optimization": zero,
            "gradient_clipping": (self.train.clip_norm or 0.0) if self.stage else 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }

    # ---- steps

    def gradients(self, ids_BT: Tensor, targets_BT: Tensor, micro_batch_size: int) -> Tensor:
        if self.engine is None:
            self._start()
        return super().gradients(ids_BT, targets_BT, micro_batch_size)

    def _accumulating(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        self.engine.set_gradient_accumulation_boundary(is_last)
        return contextlib.nullcontext()

    def _backward(self, nll: Tensor) -> None:
        self.engine.backward(nll * self.group.world, scale_wrt_gas=False)  # it takes the ranks' mean

    def _apply(self) -> Tensor:
        if self.stage == 0:  # there it would not tell the norm
            norm = self._clip()
            self.engine.step()
            return norm
        self.engine.step()
        return torch.as_tensor(float(self.engine.get_global_grad_norm()))

    def forget(self) -> None:
        if self.engine is not None:
            self.engine.zero_grad()

    # ---- what a checkpoint holds

    def load(self, files: Mapping[str, bytes]) -> None:
        assert self.engine is None, "a checkpoint is loaded before the first step"
        load_weights(files, self.model)
        self._loaded = optimizer_state(files)

    def weights(self) -> dict[str, Tensor]:
        if self.stage < 3 or self.engine is None:
            return super().weights()
        return {
            name: self._sharded.get_full_hp_param(t).view(t.ds_shape)
            if hasattr(t, "ds_shape")
            else t.detach()
            for name, t in unique_tensors(self.model).items()
        }

    def optimizer_state(self) -> dict[str, Any]:
        if self.engine is None:
            return self._loaded or {"state": {}, "param_groups": self._described}
        if self.stage == 0:
            return self.optimizer.state_dict()
        state = {}
        for index, parameter, flat in self._each():
            inner = self.optimizer.state[flat]
            state[index] = {
                key: self._gathered(parameter, value, key) if value.shape == flat.shape else value.clone()
                for key, value in inner.items()
            }
        return {"state": state, "param_groups": self._described}

    def _put(self, loaded: Mapping[str, Any]) -> None:
        """A consolidated optimizer state into this rank's partitions."""
        if self.stage == 0:
            self.optimizer.load_state_dict(dict(loaded))
            return
        for index, parameter, flat in self._each():
            inner = self.optimizer.state[flat]
            for key, value in loaded["state"][index].items():
                if value.shape != _shape(parameter) or value.ndim == 0:
                    inner[key] = value.clone()
                    continue
                if key not in inner:
                    inner[key] = torch.zeros_like(flat)
                self._scatter(parameter, value, inner[key], key)

    def _each(self) -> Iterator[tuple[int, nn.Parameter, Tensor]]:
        """Every parameter's number in a state_dict, the parameter, and the flat partition its state belongs to."""
        for number, (group, members) in enumerate(zip(self._described, self._members, strict=True)):
            for index, parameter in zip(group["params"], members, strict=True):
                place = number
                if self.stage == 3:
                    place = self._sharded.grad_position[self._sharded.get_param_id(parameter)][0]
                yield index, parameter, self._flat(place)

    def _flat(self, place: int) -> Tensor:
        sharded = self._sharded
        flats = (
            sharded.fp32_partitioned_groups_flat
            if self.stage == 3
            else sharded.single_partition_of_fp32_groups
        )
        found: Tensor = flats[place]
        return found

    def _gathered(self, parameter: nn.Parameter, partition: Tensor, key: str) -> Tensor:
        if self.stage == 3:
            whole: Tensor = self._sharded.get_full_hp_param(parameter, key)
            return whole.view(_shape(parameter))
        whole = torch.zeros_like(parameter)
        for mine, theirs in _overlap(parameter):
            whole.view(-1)[mine] = partition[theirs]
        return self.group.sum_(whole)

    def _scatter(self, parameter: nn.Parameter, value: Tensor, partition: Tensor, key: str) -> None:
        if self.stage == 3:
            self._sharded.set_full_hp_param(value, parameter, key)
            return
        for mine, theirs in _overlap(parameter):
            partition[theirs] = value.flatten()[mine]

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        if self.stage < 3 or self.engine is None:
            yield self.model
            return
        # A model beside it: hooks on the divided one would ask ranks that do not take part.
        twin = unfilled(self.trial, self.device)
        weights = self.weights()
        with torch.no_grad():
            for name, tensor in unique_tensors(twin).items():
                tensor.copy_(weights.pop(name))
        yield twin


def _shape(parameter: Any) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _overlap(parameter: Any) -> Iterator[tuple[slice, slice]]:
    """Where this rank's partition holds a part of a parameter: its place in the parameter, and in the partition."""
    if (mapping := parameter._hp_mapping) is not None:
        mine, theirs = mapping.lp_fragment_address, mapping.hp_fragment_address
        yield slice(mine.start, mine.start + mine.numel), slice(theirs.start, theirs.start + theirs.numel)
