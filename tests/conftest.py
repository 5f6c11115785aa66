"""One Ray for the whole run, and settings every test shares."""

from __future__ import annotations

import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from functools import cache
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


def _lane(config: pytest.Config, file: str) -> str:
    """Files whose tests use the run's one Ray are one scope, so that one process has it."""
    return "ray" if "ray_session" in _text(config.rootpath / file) else file


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long begins first: the run's one Ray, files with Ray of their own, files with slow tests."""
    for item in items:
        uses_ray = "ray_session" in getattr(item, "fixturenames", ())
        assert not uses_ray or item.get_closest_marker("ray"), f"{item.nodeid} needs Ray: mark it so"

    def late(item: pytest.Item) -> tuple[bool, bool, bool]:
        file, _, _ = item.nodeid.partition("::")
        text = _text(config.rootpath / file)
        return _lane(config, file) != "ray", "mark.ray" not in text, "mark.slow" not in text

    items.sort(key=late)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`make test` runs two workers: one has the run's one Ray and every
    test that uses it, both share the rest, file by file, in the order above.

    xdist's own groups are lost on pytest 9.2 (xdist 3.8.0 writes them into names that pytest no longer reads).
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _lane(config, nodeid.partition("::")[0])

    config.option.loadscopereorder = False  # by the number of tests, which says nothing of their time
    return Files(config, log)


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


class S3:
    """A real S3 server (moto's) in this process; `url` names its bucket, the environment leads to it."""

    url = "s3://records"

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.is_away = False
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        app, lock = self._server._server.app, threading.Lock()

        def in_one_step(environ: Any, start_response: Any) -> Any:
            # moto looks for `If-None-Match: *` and writes in two steps, S3 itself in one.
            with lock:
                if not self.is_away:
                    return app(environ, start_response)
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]

        self._server._server.app = in_one_step
        host, port = self._server.get_host_and_port()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def new(self) -> str:
        """A prefix nobody has used."""
        return f"{self.url}/{uuid.uuid4().hex[:8]}"

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """The run's S3 server."""
    server = S3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir(server.url)
        yield server
    server.stop()
