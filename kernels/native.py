"""Kernels in C++ for CPUs: compiled on first use on the machine they run on, kept in the user's cache folder.

Nothing is compiled where there is no compiler, on processors without AVX2, or with `FABRIC_NATIVE=0` (no, false, off):
the callers then use PyTorch's own operators.

The kernels are given addresses. Whatever is no plain tensor in the CPU's memory, or has to be seen by PyTorch operator
by operator, is not theirs: `computes` and `watched` say so, `refusal` when a kernel was asked for by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _get_tracing_state, _len_torch_dispatch_stack

from kernels.folders import default_cache_root

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-ffp-contract=fast", "-fno-math-errno")
COMPILE_SECONDS = 300
DTYPES = (torch.float32, torch.bfloat16)


def _sources() -> list[Path]:
    return sorted(Path(__file__).parent.glob("*/cpu.cpp"))


# What the library gives; one without all of them is not loaded.
FUNCTIONS = (
    *("attention_has_bf16", "attention_forward", "attention_backward", "cross_entropy", "decode_token"),
    *("products_of_few_rows", "rms_norm_forward", "rms_norm_backward", "rotary"),
    *("swiglu_forward", "swiglu_backward"),
)
_OFF, _ON = ("0", "no", "false", "off"), ("", "1", "yes", "true", "on")
_PLAIN = (Tensor, torch.nn.Parameter)  # not their subclasses: fake, distributed, quantised ones


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where there are none; compiling takes some seconds, once a machine.

    Raises ValueError for a `FABRIC_NATIVE` that says neither yes nor no.
    """
    if not _wanted() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return None
    try:
        compiler = _compiler()
        return None if compiler is None else _found_or_built(compiler)
    except _Unusable as problem:
        text = f"fabric's CPU kernels {problem}; PyTorch's are used instead (slower)"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return None


class _Unusable(Exception):
    """Why there are no kernels, said to the user once."""


def _wanted() -> bool:
    value = os.environ.get("FABRIC_NATIVE", "")
    if value.strip().lower() in _OFF:
        return False
    if value.strip().lower() not in _ON:
        raise ValueError(
            f"FABRIC_NATIVE={value!r} says neither yes nor no: use one of {', '.join(_OFF)} to compute with PyTorch's "
            f"operators, or leave it out for our own kernels ({', '.join(_ON[1:])})"
        )
    return True


def computes(*tensors: Tensor) -> bool:
    """Whether kernels can be given these tensors: fp32 or bf16, in the CPU's memory, nobody watching."""
    for x in tensors:
        if x.dtype not in DTYPES or not in_memory(x):
            return False
    return not watched() and library() is not None


def in_memory(x: Tensor) -> bool:
    """Whether the address of the tensor is that of its values, on the CPU."""
    return type(x) in _PLAIN and x.is_cpu and x.layout is torch.strided and not x.is_neg()


def watched() -> bool:
    """Whether operators are recorded or transformed as they run, which a call by address would escape.

    That is `jit.trace`, dispatch modes (fake tensors, make_fx, counters of FLOPs), functorch (vmap, grad, jvp), and
    forward-mode derivatives.
    """
    return (
        _len_torch_dispatch_stack() > 0
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _get_tracing_state() is not None
    )


def refusal(kernel: str, takes: str, **given: Tensor) -> ValueError:
    """What to raise when backend="cpu" was asked for and its kernel does not take what was given."""
    tensors = ", ".join(
        f"{name} {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"
        for name, x in given.items()
    )
    if library() is None:
        takes = "nothing here: there is no C++ compiler or no AVX2, or FABRIC_NATIVE turns it off"
    state = (
        " under tracing, a functorch transform, a dispatch mode or forward-mode derivatives"
        if watched()
        else ""
    )
    return ValueError(
        f"{kernel}'s kernel for CPUs does not take {tensors}{state}; it takes {takes}. Use backend='auto'"
    )


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


def _compiler() -> list[str] | None:
    """The compiler's command: `$CXX`, which may have arguments, else g++ or clang++; None where there is none."""
    try:
        words = shlex.split(named := os.environ.get("CXX", ""))
    except ValueError as error:
        raise _Unusable(f"could not be compiled: CXX={named!r} cannot be read ({error})") from error
    if words:
        if shutil.which(words[0]) is None:
            raise _Unusable(
                f"could not be compiled: CXX={named!r} names no program; correct it or leave it out"
            )
        return words
    found = shutil.which("g++") or shutil.which("clang++")
    return None if found is None else [found]


def _found_or_built(compiler: list[str]) -> ctypes.CDLL:
    """The shared library of these sources for this processor and compiler, built unless it is there and whole."""
    try:
        sources = _sources()
        version = _run([*compiler, "--version"])
        parts = (_digest(sources), " ".join(compiler[1:]), version, _processor())
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        target = default_cache_root() / "kernels" / f"kernels-{key}.so"
        if _is_whole(target):
            with contextlib.suppress(OSError, AttributeError):
                return _opened(target)
        return _built(compiler, sources, target)
    except (subprocess.SubprocessError, OSError, AttributeError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        raise _Unusable(
            f"could not be compiled with {shlex.join(compiler)}: {detail.strip()[-500:]}"
        ) from error


def _is_whole(file: Path) -> bool:
    """Whether the file ends in the hash of what comes before, as `_built` leaves it: to load another can crash."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    return content.endswith(hashlib.sha256(content[: -hashlib.sha256().digest_size]).digest())


def _opened(file: Path) -> ctypes.CDLL:
    """The library, all its functions found. Raises OSError or AttributeError."""
    loaded = ctypes.CDLL(str(file))
    for function in FUNCTIONS:
        getattr(loaded, function)
    loaded.attention_has_bf16()  # asks the system for the matrix unit, before any thread uses it
    return loaded


def _built(compiler: list[str], sources: list[Path], target: Path) -> ctypes.CDLL:
    """Build, load and keep it. It appears in one step, so that several processes may build it at once."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-")
    except OSError as error:
        fix = "set FABRIC_CACHE to a folder that can be written"
        raise _Unusable(f"cannot be kept in {target.parent} ({error.strerror}): {fix}") from error
    with building as folder:
        objects = []
        for number, source in enumerate(sources):
            objects.append(f"{folder}/{number}.o")
            # OpenMP's functions are left open: PyTorch's own runtime, already loaded, provides them, so that one
            # pool of threads does all the work.
            _run([*compiler, *FLAGS, "-fopenmp", "-c", str(source), "-o", objects[-1]])
        built = Path(folder) / "kernels.so"
        _run([*compiler, "-shared", "-Wl,-z,now", *objects, "-o", str(built)])
        content = built.read_bytes()
        built.write_bytes(
            content + hashlib.sha256(content).digest()
        )  # loaders do not read past their own tables
        # Before it is moved: under a name that is loaded already (a damaged one) the old library would be returned.
        loaded = _opened(built)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(built, target)
        return loaded


def _run(command: list[str]) -> str:
    """What the command prints."""
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=COMPILE_SECONDS
    )
    return done.stdout
