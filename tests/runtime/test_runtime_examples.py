"""Labelled examples by Tune: a rate is stopped at a rung, the other goes on, its test split is read at the end."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from drill_kit import ROOT, SYNC_ASHA, rates

import fabric
from fabric.results import status
from fabric.store import FINISHED, Store

pytestmark = [pytest.mark.ray, pytest.mark.slow]
LOW, HIGH = 1e-7, 1e-2


def recall_with_rates() -> dict[str, Any]:
    """jobs/recall.yaml at its smoke size: one arm, a rate that learns nothing and one that learns."""
    body = yaml.safe_load((ROOT / "jobs" / "recall.yaml").read_text())
    body["base"]["train"]["tokens"] = 16 * 64 * 24
    body["search"] = {
        "mode": "grid",
        "seeds": 1,
        "tuning_seeds": 1,
        "axes": [{"arms": [{"name": "conv", "set": {"model.short_conv": 3}}]}, rates(LOW, HIGH)],
        "scheduler": {**SYNC_ASHA, "grace_tokens": 16 * 64 * 8},
    }
    smoke = body["scales"]["smoke"]
    body["scales"] = {"smoke": {k: v for k, v in smoke.items() if not k.startswith("search")}}
    return body


def test_asha_over_labelled_examples_ends_with_their_test_accuracy(ray_session, tmp_path):
    end = fabric.sweep(recall_with_rates(), scale="smoke", out=tmp_path)
    assert not end.failed
    found = fabric.results(end.root)
    (row,) = found.arms
    assert row.n == 1
    assert 0 <= row.means["test_exact"] <= row.means["test_accuracy"] <= 1
    assert row.means["test_loss"] > 0
    states = {s.id: s for s in status(end.root)}
    store = Store(end.root)
    by_rate: dict[float, list[str]] = {}
    for trial in store.trial_ids():
        rate = store.trial(trial).spec()["train"]["optimizer"]["lr"]
        by_rate.setdefault(rate, []).append(trial)
    (stopped,) = by_rate[LOW]
    assert states[stopped].state == "stopped"
    assert "against" in states[stopped].reason
    chosen = [states[t] for t in by_rate[HIGH]]
    assert {s.state for s in chosen} == {FINISHED}
    assert len(chosen) == 2, "once to be chosen, once for the result"
    read = [t for t in store.trial_ids() if store.trial(t).evaluation("test-all") is not None]
    assert len(read) == 1
    assert read[0] in by_rate[HIGH]
    assert store.trial(read[0]).evaluation("test-all")["test_accuracy"] == row.means["test_accuracy"]
