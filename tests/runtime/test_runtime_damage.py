"""What a killed driver or a bad disk may have left, met by the next run of the same command (inline, without Ray)."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from typing import Any

import pytest
from drill_kit import SYNC_ASHA, losses, states, table
from session_kit import ARMS, Heard, one_way, tuning_job

import fabric
from fabric.job.load import load_job
from fabric.results import status
from fabric.store import Store
from fabric.sweeping import new_study


def test_a_test_split_that_cannot_be_read_is_reported(tmp_path):
    body = one_way(tmp_path, ARMS[:1], resources={"max_retries": 1})
    done = fabric.sweep(body, out=tmp_path / "out", runner="inline")
    assert not done.failed
    store = Store(done.root)
    (trial,) = store.trial_ids()
    store.objects.delete(f"trials/{trial}/evaluations")
    for key in store.objects.list(f"trials/{trial}/attempts/1/checkpoints"):
        if key.endswith("model.safetensors"):
            store.objects.put(key, b"rotten")
    with pytest.warns(RuntimeWarning, match="damaged"):
        again = fabric.sweep(body, out=tmp_path / "out", runner="inline")
    assert again.failed == (trial,)
    assert any("test split was not read" in w for w in again.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("said", ["running", "stopped"])
def test_a_rung_reached_before_the_driver_died_is_decided_by_the_next_one(tmp_path, said):
    """The worker had written its row and waited; the driver was killed, or interrupted, before it decided."""
    body = tuning_job(tmp_path, SYNC_ASHA)
    whole = fabric.sweep(body, out=tmp_path / "whole", runner="inline")
    loaded, root = load_job(body), tmp_path / "cut" / "drill"

    class Killed(BaseException):
        pass

    class KillsAtFirstRung(Heard):
        def reported(self, task: Any, row: dict[str, Any], action: str) -> None:
            if row.get("tokens") in task.trial.rungs:
                raise Killed

    with pytest.raises(Killed):
        fabric.sweep(body, out=tmp_path / "cut", runner="inline", progress=KillsAtFirstRung())
    store = Store(root)
    (first,) = store.trial_ids()
    for key in store.objects.list(f"trials/{first}/decisions"):
        store.objects.delete(key)
    record = store.trial(first)
    last = record.status()
    assert last is not None
    attempt = record.new_attempt({"resumed_step": last.step})
    reason = {"kind": "interrupted", "by": "SystemExit"} if said == "stopped" else None
    attempt.write_status(said, last.step, reason)
    study = new_study(loaded, root, tmp_path / "cut")
    assert study.trials[first].state == "paused", "it is not trained past a rung that has not decided"
    done = fabric.sweep(body, out=tmp_path / "cut", runner="inline")
    assert table(done.root) == table(whole.root)
    assert losses(Store(done.root)) == losses(Store(whole.root))


@pytest.mark.parametrize("damage", ["cut metrics", "no manifest", "missing file", "corrupted file"])
def test_damage_costs_at_most_the_work_since_the_checkpoint_before(tmp_path, damage):
    body = one_way(tmp_path, ARMS[:1], train={"checkpoint": {"every_steps": 3, "keep_last": 3}})
    whole = fabric.sweep(body, out=tmp_path / "whole", runner="inline")
    done = fabric.sweep(body, out=tmp_path / "hurt", runner="inline")
    store = Store(done.root)
    (trial,) = store.trial_ids()
    record = store.trial(trial)
    folder = store.root / "trials" / trial / "attempts" / "1"
    newest = folder / "checkpoints" / f"{12:010d}"
    if damage == "cut metrics":
        segment = max(folder.glob("metrics-*.jsonl"))
        segment.write_bytes(segment.read_bytes()[:-20])
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    elif damage == "missing file":
        (newest / "optimizer.pt").unlink()
    else:
        weights = bytearray((newest / "model.safetensors").read_bytes())
        weights[-5] ^= 1
        (newest / "model.safetensors").write_bytes(weights)
    store.objects.delete(f"trials/{trial}/evaluations")
    before = record.status()
    assert before is not None
    body_of = {"state": "running", "heartbeat": 9, "step": 12, "reason": None, "final": None}
    (folder / "status.json").write_text(json.dumps(body_of))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = fabric.sweep(body, out=tmp_path / "hurt", runner="inline")
    assert any("damaged" in str(w.message) for w in caught) == (damage in ("missing file", "corrupted file"))
    resumed = (record.provenance(2) or {})["resumed_step"]
    assert resumed == (12 if damage == "cut metrics" else 9)
    assert losses(Store(again.root))[trial][-1] == losses(Store(whole.root))[trial][-1]
    assert table(again.root) == table(whole.root)
    assert states(store) == {trial: "finished"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study of two arms: its job and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    body = one_way(folder, ARMS[:2])
    return body, fabric.sweep(body, out=folder / "out", runner="inline").root


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}"])
@pytest.mark.parametrize(
    "record",
    ["studies/*/job.json", "studies/*/used.json", "studies/*/plan-0.json", "studies/*/rate-0-0.json",
     "studies/*/decision-0.json", "trials/*/trial.json", "trials/*/evaluations/*.json",
     "trials/*/attempts/1/status.json", "trials/*/attempts/1/provenance.json", "trials/*/attempts/.DS_Store",
     "trials/*/attempts/1/checkpoints/*/manifest.json"],
)  # fmt: skip
def test_a_damaged_record_is_made_again_by_the_same_command(finished, tmp_path, record, content):
    """Each kind of record, cut or with something else in it: the table is the same, and no result is lost."""
    body, before = finished
    root = tmp_path / "out" / before.name
    shutil.copytree(before, root)
    shutil.copytree(before.parent / ".cache", root.parent / ".cache")
    found = sorted(root.glob(record)) or [next(root.glob("trials/*/attempts")) / ".DS_Store"]
    found[0].write_bytes(content)
    status(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        done = fabric.sweep(body, out=tmp_path / "out", runner="inline")
    if "checkpoints" in record or "status" in record:  # trained again where that is all that is left
        assert losses(Store(root)).keys() == losses(Store(before)).keys()
    else:
        assert {p.name for p in root.glob("trials/*/attempts/*")} <= {"1", ".DS_Store"}, (
            "nothing is trained again"
        )
    assert not done.failed
    assert table(root) == table(before)
    again = fabric.sweep(body, out=tmp_path / "out", runner="inline")
    assert new_study(load_job(body), again.root, tmp_path / "out").finished()


def test_a_cut_metrics_file_of_a_finished_trial_trains_nothing(tmp_path):
    body = one_way(tmp_path, ARMS[:1])
    done = fabric.sweep(body, out=tmp_path / "out", runner="inline")
    store = Store(done.root)
    (trial,) = store.trial_ids()
    for segment in (store.root / "trials" / trial / "attempts" / "1").glob("metrics-*.jsonl"):
        segment.write_bytes(segment.read_bytes()[:-7])
    began = time.monotonic()
    fabric.sweep(body, out=tmp_path / "out", runner="inline")
    assert time.monotonic() - began < 5
    assert store.trial(trial).attempt_numbers() == [1]
    assert fabric.results(done.root).arms[0].arm == "mha", "a verb stays one when its module is imported"
