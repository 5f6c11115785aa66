"""Sweeps whose records are on object storage: killed and resumed, out of reach, and with workers on other machines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drill_kit import Ledger, assert_honest, losses, n_finished, states, sweeping, table, write_job
from session_kit import ARMS, Heard, one_way, tune_sweep
from typer.testing import CliRunner

import fabric
from fabric.cli import app
from fabric.runtime.worker import fabric_trial
from fabric.store import LockedError, Store, StoreUnavailableError, driver_lives, located, remote
from kernels.folders import default_cache_root

MACHINES = ("kernels", "machine")  # what takes seconds to make, and has nothing to do with records


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], str]:
    """Makes cache folders of machines that have compiled their kernels and hold no text or weights."""
    own = default_cache_root()

    def new(name: str) -> str:
        (folder := tmp_path / name).mkdir()
        for part in MACHINES:
            (own / part).mkdir(parents=True, exist_ok=True)
            (folder / part).symlink_to(own / part)
        return str(folder)

    return new


@pytest.mark.slow
def test_a_killed_sweep_on_s3_goes_on_and_ends_like_a_local_one(s3, machine, tmp_path, monkeypatch):
    body, out = one_way(tmp_path, ARMS[:2]), located(s3.new())
    whole = fabric.sweep(body, out=tmp_path / "whole", runner="inline")
    ledger, file = Ledger(), write_job(tmp_path, body)
    with sweeping(file, out, "--inline", FABRIC_CACHE=machine("first"), **s3.environment) as first:
        first.until(lambda store: n_finished(store) >= 1)
        assert driver_lives(first.root)
        with pytest.raises(LockedError, match=f"{out}/drill is in use by process {first.pid} on "):
            fabric.sweep(body, out=str(out), runner="inline")
        first.kill()
    ledger.look(first.store)
    assert_honest(first.root)
    monkeypatch.setenv("FABRIC_CACHE", machine("second"))
    last = fabric.sweep(body, out=str(out), runner="inline")
    assert not last.failed
    ledger.look(Store(last.root))
    assert table(last.root) == table(whole.root)
    assert losses(Store(last.root)) == losses(Store(whole.root))
    assert {row.state for row in fabric.plan(body, out=str(out)).trials} == {"finished"}
    assert not (tmp_path / "s3:").exists()

    monkeypatch.setenv("FABRIC_CACHE", machine("third"))
    (tmp_path / "text.txt").unlink()  # and neither the text nor a cache is here
    url = str(last.root)
    for verb, said in (("status", "finished"), ("results", "mha"), ("doctor", f"{url} answers")):
        done = CliRunner().invoke(app, [verb, *(["--out"] if verb == "doctor" else []), url])
        assert done.exit_code == 0, done.output
        assert said in done.output
    said = fabric.generate(url, "the", tokens=4, temperature=0)
    assert said == fabric.generate(whole.root, "the", tokens=4, temperature=0)
    trial = f"{url}/trials/{Store(url).trial_ids()[0]}"
    written = fabric.export(trial, tmp_path / "hf")
    assert "job: drill" in (written / "README.md").read_text()
    with pytest.raises(ValueError, match="only a local path can be written"):
        fabric.export(trial, f"{out}/hf")


class Unplugs(Heard):
    """The network is gone at the second trial's first report."""

    def __init__(self, s3: Any) -> None:
        super().__init__()
        self.s3 = s3

    def reported(self, task: Any, row: Any, action: str) -> None:
        self.s3.is_away = len(self.order) == 2


def test_a_store_out_of_reach_is_no_trials_fault(s3, machine, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.01,))
    monkeypatch.setenv("FABRIC_CACHE", machine("here"))
    body, out = one_way(tmp_path, ARMS[:2]), s3.new()
    try:
        with pytest.raises(
            StoreUnavailableError, match=f"{out}/drill cannot be reached .*the same command goes on"
        ):
            fabric.sweep(body, out=out, runner="inline", progress=Unplugs(s3))
    finally:
        s3.is_away = False
    assert_honest(located(f"{out}/drill"))
    last = fabric.sweep(body, out=out, runner="inline")
    assert not last.failed
    store = Store(last.root)
    assert set(states(store).values()) == {"finished"}
    assert not [d for t in store.trial_ids() for d in store.trial(t).decisions() if "failed_attempt" in d]


@pytest.fixture
def _workers_know_this_module() -> Iterator[None]:
    """Trainables below travel by value: a worker's path has no tests on it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def elsewhere(environment: dict[str, str]) -> Callable[[dict[str, Any]], None]:
    """A worker of another machine, which has its own environment."""

    def trial(config: dict[str, Any]) -> None:
        os.environ.update(environment)
        fabric_trial(config)

    return trial


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session", "_workers_know_this_module")
def test_workers_need_the_url_and_credentials_only(s3, machine, tmp_path, monkeypatch):
    monkeypatch.setenv("FABRIC_CACHE", machine("drivers"))
    body, out = one_way(tmp_path, ARMS[:1]), s3.new()
    cut_off = {**s3.environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "FABRIC_CACHE": machine("cut")}
    with pytest.raises(
        StoreUnavailableError, match=f"{out}/drill cannot be reached .*the same command goes on"
    ):
        tune_sweep(body, out, elsewhere(cut_off))
    study, heard = tune_sweep(body, out, elsewhere({**s3.environment, "FABRIC_CACHE": machine("theirs")}))
    assert heard.errors == []
    (trial,) = study.trials.values()
    assert trial.end == "finished"
    assert len(study.store.trial(trial.id).attempt_numbers()) == 1, "the cut-off worker took none"
    assert (tmp_path / "theirs" / "tokens" / trial.spec.data_key / "manifest.json").is_file()
    alone = fabric.sweep(body, out=tmp_path / "alone", runner="inline")
    assert losses(study.store) == losses(Store(alone.root))
