"""Kernels in C++ for CPUs: compiled on first use on the machine they run on, kept in the user's cache folder.

Nothing is compiled where there is no compiler, on processors without AVX2, or with `FABRIC_NATIVE=0`: the callers then
use PyTorch's own operators.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.folders import default_cache_root

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-ffp-contract=fast", "-fno-math-errno")
COMPILE_SECONDS = 300
DTYPES = (torch.float32, torch.bfloat16)


def _sources() -> list[Path]:
    return sorted(Path(__file__).parent.glob("*/cpu.cpp"))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where there are none; compiling takes some seconds, once a machine."""
    if os.environ.get("FABRIC_NATIVE") == "0" or not torch.backends.cpu.get_cpu_capability().startswith(
        "AVX"
    ):
        return None
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
    if compiler is None:
        return None
    try:
        loaded = ctypes.CDLL(str(_built(compiler)))
        loaded.attention_has_bf16()  # asks the system for the matrix unit, before any thread uses it
        return loaded
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        warnings.warn(
            f"fabric's CPU kernels could not be compiled with {compiler}, PyTorch's are used instead (slower): "
            f"{detail.strip()[-500:]}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def computes(*tensors: Tensor) -> bool:
    """Whether the elementwise kernels take these tensors: all on the CPU, fp32 or bf16."""
    return all(x.device.type == "cpu" and x.dtype in DTYPES for x in tensors) and library() is not None


def attention_dtypes() -> tuple[torch.dtype, ...]:
    """What the attention kernels compute in here: fp32 needs AVX-512 to be fast, bf16 a matrix unit.

    torch.compile cannot look into a library: compiled code takes what was found before it was compiled.
    """
    if _ATTENTION is None and not torch.compiler.is_compiling():
        _look()
    return _ATTENTION or ()


_ATTENTION: tuple[torch.dtype, ...] | None = None


def _look() -> None:
    global _ATTENTION
    loaded = library()
    if loaded is None or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        _ATTENTION = ()
    else:
        _ATTENTION = DTYPES if loaded.attention_has_bf16() else (torch.float32,)


def call(function: str, *arguments: Tensor | int | float | ctypes.Array[Any]) -> None:
    """A kernel with tensors' addresses, 64-bit integers, floats and arrays; the number of threads is added."""
    loaded = library()
    assert loaded is not None
    getattr(loaded, function)(*map(_as_c, arguments), torch.get_num_threads())


def _as_c(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_int64(value) if isinstance(value, int) else value


def name() -> str:
    """Which kernels this process computes with: part of what bit-equality is promised within."""
    return "torch" if library() is None else f"native-{_digest(_sources())[:8]}"


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for file in [Path(__file__).parent / "vector.h", *files]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    """What `-march=native` depends on: the processor's flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), "")


def _built(compiler: str) -> Path:
    """The shared library of these sources for this processor and compiler, built unless it is there."""
    sources = _sources()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256("\n".join((_digest(sources), version, _processor())).encode()).hexdigest()[:16]
    target = default_cache_root() / "kernels" / f"kernels-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as folder:
        objects = []
        for number, source in enumerate(sources):
            objects.append(f"{folder}/{number}.o")
            # OpenMP's functions are left open: PyTorch's own runtime, already loaded, provides them, so that one
            # pool of threads does all the work.
            _run([compiler, *FLAGS, "-fopenmp", "-c", str(source), "-o", objects[-1]])
        _run([compiler, "-shared", "-Wl,-z,now", *objects, "-o", f"{folder}/kernels.so"])
        os.replace(f"{folder}/kernels.so", target)
    return target


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS)
