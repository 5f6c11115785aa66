"""The places records may be kept: tests that take `new_root` run on each."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session", params=["folder", "memory", "s3"])
def new_root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Makes roots that hold nothing: folders, of this process's memory, of an S3 bucket."""
    if request.param == "folder":
        return lambda: str(tmp_path_factory.mktemp("store"))
    if request.param == "memory":
        return lambda: f"memory://{uuid.uuid4().hex}/job"
    new: Callable[[], str] = request.getfixturevalue("s3").new
    return new
