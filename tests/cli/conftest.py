"""One tiny study, trained once, for all tests of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_kit import Cli, write_job

import fabric


@dataclass(frozen=True)
class Swept:
    """A finished study: its job file, the folder of runs, and the job's folder in it."""

    job: Path
    out: Path
    root: Path


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("swept")
    job, out = write_job(folder), folder / "runs"
    end = fabric.sweep(job, out=out, runner="inline")
    assert not end.failed
    return Swept(job, out, end.root)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)
