"""What a trial will cost, before it runs: steps, FLOPs, peak memory, disk."""

from __future__ import annotations

from functools import cache

from fabric.planning.trial import TrialSpec
from models import flops_per_token, n_params
from models.cost import activation_bytes

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def n_steps(spec: TrialSpec) -> int:
    """Optimizer steps of the whole run."""
    return spec.train.n_steps(spec.data.seq_len, n_params(spec.model))


def training_tokens(spec: TrialSpec) -> int:
    """Tokens of the whole run: whole steps of whole batches."""
    return n_steps(spec) * spec.train.batch_size * spec.data.seq_len


def training_flops(spec: TrialSpec) -> float:
    """FLOPs of the whole run: forward, and twice that backward, of every token."""
    return 3 * flops_per_token(spec.model, spec.data.seq_len) * training_tokens(spec)


def peak_memory_bytes(spec: TrialSpec) -> int:
    """Predicted peak resident bytes of the process (or of CUDA's allocator) that trains this trial.

    What the interpreter and torch hold before the trial, plus parameters, gradients, optimizer state (fp32 master
    weights), and the activations of one micro-batch.
    """
    train = spec.train
    state = n_params(spec.model) * (8 + train.optimizer.STATE_BYTES_PER_PARAM)
    micro_batch = train.micro_batch_size or train.batch_size
    activations = activation_bytes(spec.model, micro_batch, spec.data.seq_len, DTYPE_BYTES[train.precision])
    return int((0 if spec.device == "cuda" else process_bytes()) + state + activations)


def checkpoint_bytes(spec: TrialSpec) -> int:
    """Bytes of one checkpoint: fp32 weights and the optimizer's state."""
    return int(n_params(spec.model) * (4 + spec.train.optimizer.STATE_BYTES_PER_PARAM))


@cache
def process_bytes() -> int:
    """Resident bytes of a process that has loaded torch and trained nothing, measured on this one."""
    import torch

    import fabric.train.loop  # noqa: F401

    # One small product and backward pass page in the libraries that every training step needs.
    x = torch.ones(64, 64, requires_grad=True)
    (x @ x).sum().backward()
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return int(status["VmRSS"].split()[0]) * 1024
