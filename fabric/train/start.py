"""Weights that training starts from: kept once by their hash, as plain safetensors with our names, in fp32.

<cache root>/weights/<sha256>/model.safetensors; the hash is the file's, and the file names its architecture too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch
from torch import nn

from fabric.data.disk import beside, canonical_json, sha256_of_file
from fabric.train.checkpoint import load_weights, unique_tensors
from models.config import ModelConfig
from models.decoder import CausalLM, uninitialised
from models.lora import add_lora

if TYPE_CHECKING:
    from fabric.planning.trial import TrialSpec

NAME = "model.safetensors"


def weights_file(cache_root: Path | str, key: str) -> Path:
    """Where the weights of a hash are kept."""
    return Path(cache_root) / "weights" / key / NAME


def keep_weights(model: CausalLM, cache_root: Path) -> str:
    """Keep a model's weights and architecture below a cache root; returns the hash. The folder appears whole."""
    tensors = {
        name: t.detach().to("cpu", torch.float32).contiguous() for name, t in unique_tensors(model).items()
    }
    config = model.config.model_dump(mode="json", exclude_defaults=True)
    temp = beside(cache_root / "weights" / "start", "writing")
    temp.mkdir(parents=True)
    try:
        safetensors.torch.save_file(tensors, temp / NAME, metadata={"config": canonical_json(config)})
        with (temp / NAME).open("rb") as file:
            os.fsync(file.fileno())
        (temp / "config.json").write_text(json.dumps(config, indent=1))
        key = sha256_of_file(temp / NAME)
        final = weights_file(cache_root, key).parent
        if not (final / NAME).is_file():
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temp, final)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return key


def kept_config(cache_root: Path, key: str) -> ModelConfig | None:
    """The architecture of kept weights; None where they are not (or not whole) there."""
    try:
        with safetensors.safe_open(weights_file(cache_root, key), "pt") as file:
            return ModelConfig.model_validate_json(file.metadata()["config"])
    except (OSError, safetensors.SafetensorError, KeyError, TypeError):
        return None


def fresh(trial: TrialSpec, device: str | None = None) -> nn.Module:
    """The module a trial trains, with its initial parameters; those of weights it starts from are to be read yet."""
    return _adapted(trial.train.objective.build(trial.model, trial.seed, device or trial.device), trial)


def unfilled(trial: TrialSpec, device: str | None = None) -> nn.Module:
    """The module a trial trains, for weights that are there: most of its parameters are uninitialised memory."""
    model = uninitialised(trial.model, device or trial.device)
    return _adapted(trial.train.objective.around(model, trial.seed), trial)


def _adapted(module: nn.Module, trial: TrialSpec) -> nn.Module:
    lora = trial.train.lora
    if lora is not None:
        add_lora(module, lora.rank, lora.alpha, lora.targets, trial.seed)
    return module


def started(trial: TrialSpec, file: Path | None) -> nn.Module:
    """The module a trial trains: on the weights of `file`, which must have the trial's hash, whatever the seed.

    Raises ValueError when the file is missing or another one.
    """
    advice = "run `fabric plan` on the job: it reads the original again"
    if file is None or not file.is_file():
        raise ValueError(f"the weights {trial.weights} this trial starts from are not at {file}; {advice}")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != trial.weights:
        raise ValueError(
            f"{file} is damaged: its hash is not {trial.weights}; delete its folder, and {advice}"
        )
    model = uninitialised(trial.model, trial.device)
    load_weights({NAME: data}, model)
    return _adapted(trial.train.objective.around(model, trial.seed), trial)
