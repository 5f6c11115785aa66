"""One Ray for the whole run, and settings every test shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Begun with `&` or nohup, these are ignored, and what the tests start would inherit that; a handler is not inherited.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)
# Real corpora and tokenizers, where there are any: more is tested then. FABRIC_DATA names the folder.
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
if _BESIDE.is_dir():
    os.environ.setdefault("FABRIC_DATA", str(_BESIDE))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Every test computes on one thread, whatever the one before set."""
    import torch

    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The run's one Ray instance, started as `fabric.sweep` starts its own."""
    from fabric.runtime.connect import cluster

    with cluster(None, n_cpus=2):
        yield
