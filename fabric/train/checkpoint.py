"""Checkpoints: `model.safetensors` (unique tensors), `optimizer.pt` and `state.pt` (read with weights_only=True)."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fabric.store import Attempt, Checkpoint, TrialRecord

if TYPE_CHECKING:
    from fabric.planning.trial import TrialSpec


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each once: a tied weight under its first name."""
    kept = model.state_dict(keep_vars=True)
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors.update((name, b) for name, b in model.named_buffers() if name in kept)
    return tensors


def parameter_hash(model: nn.Module) -> str:
    """sha256 over names and bytes of all unique tensors: equal hashes mean bit-equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unique_tensors(model).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(
    attempt: Attempt,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    keep_last: int,
) -> None:
    """Write a checkpoint of `step`, of `unique_tensors` and an optimizer's `state_dict`; it exists once its manifest
    does. Raises OSError when the disk is full.
    """

    def files() -> Iterator[tuple[str, bytes]]:
        # One at a time, so that only one serialised copy is in memory.
        tensors = {name: t.detach().contiguous() for name, t in weights.items()}
        yield "model.safetensors", safetensors.torch.save(tensors)
        yield "optimizer.pt", _dump(dict(optimizer))
        yield "state.pt", _dump(dict(state))

    attempt.save_checkpoint(step, files(), {"files": "fabric.train.checkpoint"}, keep_last)


def newest_checkpoint(
    record: TrialRecord, known: Sequence[Checkpoint] | None = None
) -> tuple[Checkpoint, dict[str, bytes]] | None:
    """The last complete, undamaged checkpoint (of the `known` ones) and its files; every damaged one is passed over
    with a warning.
    """
    for checkpoint in reversed(record.checkpoints() if known is None else known):
        files = record.read_checkpoint(checkpoint)
        if files is not None:
            return checkpoint, files
        warnings.warn(
            f"checkpoint {checkpoint.prefix} is damaged (a file is missing or its hash differs); "
            "using the one before it",
            RuntimeWarning,
            stacklevel=2,
        )
    return None


def optimizer_state(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The optimizer's `state_dict` in a checkpoint."""
    return _load(files["optimizer.pt"])


def loop_state(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What the loop kept in a checkpoint."""
    return _load(files["state.pt"])


def load_model(trial: TrialSpec, files: Mapping[str, bytes]) -> Any:
    """The model of a trial, as its objective trains it, with a checkpoint's weights, on the trial's device."""
    from fabric.train.start import unfilled

    model = unfilled(trial)
    load_weights(files, model)
    return model


def load_weights(files: Mapping[str, bytes], model: nn.Module) -> None:
    """Copy a checkpoint's weights into a model; ValueError when it is of another architecture."""
    tensors = safetensors.torch.load(files["model.safetensors"])
    own = unique_tensors(model)
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
        differing = sorted(set(own) ^ set(tensors)) or sorted(
            n for n in own if own[n].shape != tensors[n].shape
        )
        raise ValueError(
            f"the checkpoint is of another architecture: {differing[:4]} differ; "
            "was the code changed under a started trial? Give a new --out folder"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _dump(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _load(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
