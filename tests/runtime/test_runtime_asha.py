"""Stopping rules by Tune and inline: the same decisions, and no arm is stopped unless that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drill_kit import ASHA, FIFO, SEQ_LEN, SYNC_ASHA, job, losses, table
from session_kit import tune_sweep, tuning_job

import fabric
from fabric.job.load import load_job
from fabric.results import status
from fabric.store import Store
from fabric.sweeping import new_study

pytestmark = pytest.mark.ray


def verdicts(study: Any) -> dict[tuple[str, str, int], dict[str, Any]]:
    return {(t.arm, t.point, rung): d for t in study.trials.values() for rung, d in t.decisions.items()}


@pytest.mark.slow
def test_synchronous_asha_decides_the_same_inline_and_with_tune(ray_session, tmp_path):
    body = tuning_job(tmp_path, SYNC_ASHA)
    study, heard = tune_sweep(body, tmp_path / "tune", slots=2)
    assert heard.errors == []
    inline = fabric.sweep(body, out=tmp_path / "inline", runner="inline")
    assert table(study.store.root) == table(inline.root)
    assert losses(study.store) == losses(Store(inline.root))
    again = new_study(load_job(body), inline.root, tmp_path / "inline")
    assert verdicts(study) == verdicts(again), "the same inputs, values and cutoffs"
    by_rung: dict[tuple[str, int], list[bool]] = {}
    for (arm, _, rung), decision in verdicts(study).items():
        by_rung.setdefault((arm, rung), []).append(decision["stop"])
        assert len(decision["seen"]) >= 2
    assert all(len(stops) - sum(stops) == len(stops) // 2 for stops in by_rung.values()), by_rung


@pytest.mark.slow
def test_asynchronous_asha_records_its_inputs_and_keeps_the_best_rate(ray_session, tmp_path):
    """Eight trials on two CPUs: where Tune and Train deadlock over placement groups (ray#54305), nothing waits."""
    from ray.util import placement_group_table

    body = tuning_job(tmp_path, ASHA)
    study, heard = tune_sweep(body, tmp_path / "tune", slots=2)
    assert heard.errors == []
    assert {g["state"] for g in placement_group_table().values()} == {"REMOVED"}
    for t in study.trials.values():
        record = study.store.trial(t.id)
        for rung, decision in t.decisions.items():
            kept = sorted(decision["seen"].values())[max(1, len(decision["seen"]) // 2) - 1]
            assert decision["cutoff"] == kept
            assert decision["stop"] == (decision["seen"][t.point] > kept)
            assert record.decision(f"{study.id}-{rung}") == decision
        assert (t.end == "stopped") == any(d["stop"] for d in t.decisions.values())
        if t.end == "stopped":
            said = {s.id: s for s in status(study.store.root)}[t.id]
            assert said.state == "stopped"
            assert "against" in said.reason
        assert len(record.attempt_numbers()) == 1
    full = fabric.sweep(tuning_job(tmp_path, FIFO), out=tmp_path / "full", runner="inline")
    stores = study.store, Store(full.root)
    chosen = [[s.study(s.studies()[0], f"rate-0-{i}")["point"] for i in (0, 1)] for s in stores]
    assert chosen[0] == chosen[1]


SLOW = [
    {"name": "quick", "set": {"train.schedule": {"kind": "constant", "warmup": 0}}},
    {"name": "slow", "set": {"train.schedule": {"kind": "constant", "warmup": 20}}},
]


def racing_job(folder: Path, compete: str, sync: bool) -> dict[str, Any]:
    """An arm that is behind for as long as it warms up."""
    scheduler = {"kind": "asha", "reduction_factor": 2, "grace_tokens": 8 * SEQ_LEN * 4, "sync": sync}
    search = {
        "mode": "grid",
        "seeds": 2,
        "axes": [{"arms": SLOW}],
        "scheduler": scheduler,
        "compete": compete,
    }
    return job(folder, steps=32, search=search)


@pytest.mark.slow
def test_a_slow_starter_is_stopped_only_on_request_and_then_with_all_its_seeds(ray_session, tmp_path):
    body = racing_job(tmp_path, "rates", sync=False)
    study = new_study(
        load_job(body), fabric.sweep(body, out=tmp_path / "rates", runner="inline").root, tmp_path / "rates"
    )
    assert {t.end for t in study.trials.values()} == {"finished"}
    assert not verdicts(study)
    for sync in (True, False):
        study, _ = tune_sweep(racing_job(tmp_path, "arms", sync), tmp_path / f"arms-{sync}", slots=2)
        ends = {(t.arm, t.seed): t.end for t in study.trials.values()}
        assert ends[("quick", 0)] == ends[("quick", 1)] == "finished"
        slow = [t for t in study.trials.values() if t.arm == "slow"]
        assert slow[0].decisions == slow[1].decisions, "one decision for all seeds"
        assert slow[0].end == slow[1].end
        if sync:
            assert slow[0].end == "stopped"
