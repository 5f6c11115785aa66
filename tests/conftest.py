"""One Ray for the whole run, and settings every test shares."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

# `make test` runs two lanes side by side (pytest-xdist): what starts Ray or waits for processes, and all the rest.
_WAITING = ("runtime", "bench", "test_jobs.py", "test_data_ray.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test's lane; the run's one Ray is in one of them."""
    here = Path(__file__).parent
    for item in items:
        waits = any(part in _WAITING for part in item.path.relative_to(here).parts)
        assert waits or not item.get_closest_marker("ray"), (
            f"{item.nodeid} needs Ray: name its file in _WAITING"
        )
        item.add_marker(pytest.mark.xdist_group("waiting" if waits else "plain"))


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


BUCKET = "records"


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of a bucket on a real S3 server (moto's) of this process, which the environment leads to."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    app, lock = server._server.app, threading.Lock()

    def in_one_step(environ: Any, start_response: Any) -> Any:
        # moto looks for `If-None-Match: *` and writes in two steps, S3 itself in one.
        with lock:
            return app(environ, start_response)

    server._server.app = in_one_step
    host, port = server.get_host_and_port()
    found = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    found |= {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_MAX_ATTEMPTS": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()
