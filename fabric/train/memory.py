"""Peak memory of one trial in a process that runs many, and what counts as running out of it."""

from __future__ import annotations

import contextlib
import ctypes

import torch

# glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**31 - 1
_SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "out of memory", "std::bad_alloc")


class OutOfMemory(RuntimeError):
    """Not even a micro-batch of one sequence fits."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def keep_freed_memory() -> None:
    """Let the C allocator keep what a step frees for the next step (glibc; elsewhere nothing happens).

    By default it returns every large tensor to the system, which then clears thousands of pages again in each step:
    a quarter of a small model's step. `PeakMemory` gives it back between trials.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


class PeakMemory:
    """Peak memory since construction: VmHWM (Linux, after clearing it), or CUDA's largest allocation, in bytes."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._cleared = _clear_high_water_mark()

    def read(self) -> int | None:
        """Bytes; None where the system does not let the mark be cleared (it would be an earlier trial's)."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return _high_water_mark() if self._cleared else None


def _clear_high_water_mark() -> bool:
    with contextlib.suppress(OSError, AttributeError):  # not glibc: nothing to give back
        ctypes.CDLL(None).malloc_trim(0)  # pages an earlier trial freed are not this one's
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _high_water_mark() -> int | None:
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
