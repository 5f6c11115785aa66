"""The process a trial runs in: every global setting that could change a number is set, none is inherited."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import random
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fabric.train.memory import keep_freed_memory
from kernels import native

if TYPE_CHECKING:
    from fabric.planning.trial import TrialSpec


def settle(trial: TrialSpec) -> None:
    """Give the process the state of a fresh one, with the trial's threads and seed.

    A reused process may have run other architectures, a compiled one, or a trial that failed anywhere.
    """
    keep_freed_memory()
    torch.set_num_threads(trial.threads)  # a preloaded torch has not seen OMP_NUM_THREADS
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.autograd.set_detect_anomaly(False)
    torch.set_flush_denormal(False)
    torch.set_float32_matmul_precision("highest")
    for device in ("cpu", "cuda"):
        torch.set_autocast_enabled(device, False)
    torch.set_autocast_cache_enabled(True)
    torch.clear_autocast_cache()
    _default_kernels(on_cuda=trial.device == "cuda")
    _forget_compiled(trial)
    seed_all(trial.seed)


_compiled_for: str | None = None


def _forget_compiled(trial: TrialSpec) -> None:
    """Drop compiled code of another kind of trial (what it was compiled for is limited in number); disk keeps it.

    A trial of the same shapes and settings goes on with the code of the last one.
    """
    global _compiled_for
    train = trial.train
    shapes = [trial.model, trial.data.seq_len, train.batch_size, train.micro_batch_size, train.precision]
    key = repr([*shapes, trial.device, trial.threads, train.objective]) if train.compile else None
    if "torch._dynamo" in sys.modules and (key is None or key != _compiled_for):
        sys.modules["torch._dynamo"].reset()
    _compiled_for = key


def _default_kernels(on_cuda: bool) -> None:
    if on_cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    if torch.are_deterministic_algorithms_enabled() != on_cuda:  # to say so loads torch's compiler
        torch.use_deterministic_algorithms(on_cuda, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = on_cuda
    for enable in (
        torch.backends.cuda.enable_flash_sdp,
        torch.backends.cuda.enable_mem_efficient_sdp,
        torch.backends.cuda.enable_math_sdp,
        torch.backends.cuda.enable_cudnn_sdp,
    ):
        enable(True)


def seed_all(seed: int) -> None:
    """Seed torch (every device), numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of every generator, as tensors and plain numbers (loadable with `weights_only=True`)."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


@contextlib.contextmanager
def aside(trial: TrialSpec) -> Iterator[None]:
    """An evaluation: it leaves the generators as they are, and runs uncompiled (its shapes are many)."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(rng_kept())
        if trial.train.compile:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextlib.contextmanager
def rng_kept() -> Iterator[None]:
    """Whatever the block draws, training's generators do not notice: evaluations never change a trial."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def numerics(trial: TrialSpec) -> dict[str, Any]:
    """What bit-equality is promised within: library versions, instruction set, threads, device, compiler,
    kernels."""
    parts = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if trial.device == "cuda" else platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": trial.threads,
        "compile": trial.train.compile,
        "kernels": native.name(),
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {**parts, "fingerprint": digest[:12]}


def provenance(trial: TrialSpec) -> dict[str, Any]:
    """Who trains: machine, process, versions and numerics fingerprint."""
    return {
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "data_key": trial.data_key,
        "numerics": numerics(trial),
    }
