"""Ctrl-C, SIGTERM (Slurm, Kubernetes, `ray job stop`), SIGHUP (a closed terminal): the first asks, the second ends
the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Asking:
    """What the first signal does now: raise KeyboardInterrupt, or call `softly`."""

    def __init__(self) -> None:
        self.seen = 0
        self.softly: Callable[[], None] | None = None

    def handle(self, signum: int, frame: FrameType | None) -> None:
        self.seen += 1
        if self.seen > 1:
            os._exit(128 + signum)
        if self.softly is None:
            raise KeyboardInterrupt
        self.softly()


_current: _Asking | None = None


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt in the block, as Ctrl-C does; a second signal ends the process.

    What is ignored stays so (`nohup`). Outside the main thread, and inside another such block, nothing changes.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _current = _Asking()
    heard = [s for s in ASKED if signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, _current.handle) for s in heard}
    try:
        yield
    finally:
        _current = None
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers back that the block replaces (`ray.init` sets one of its own for SIGTERM)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in ASKED}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Inside `interruptible`: the block's first signal raises nothing; what is yielded says whether it came."""
    asked: list[bool] = []
    if _current is not None and threading.current_thread() is threading.main_thread():
        _current.softly = lambda: asked.append(True)
    try:
        yield lambda: bool(asked)
    finally:
        if _current is not None:
            _current.softly = None


@contextmanager
def clean_stop(interrupt: Callable[[], None]) -> Iterator[None]:
    """In the block, which runs Tune, the first signal ends the run cleanly instead of raising.

    Tune stops its trials and returns on SIGUSR1 as it does on SIGINT; `interrupt` is called first, so that nobody
    takes the return for an end (what it raises is raised in the main thread, after Tune has been told). Outside the
    main thread the caller's handlers stand.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def softly() -> None:
        try:
            interrupt()
        finally:
            signal.raise_signal(signal.SIGUSR1)

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    before = signal.getsignal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until Tune has set its own
    with interruptible():
        assert _current is not None
        _current.softly = softly
        try:
            yield
        finally:
            _current.softly = None
            signal.signal(signal.SIGUSR1, before)
