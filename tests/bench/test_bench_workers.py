"""The bench of several workers at its smallest size, over real ranks."""

from __future__ import annotations

import json

import pytest

from fabric.bench import bench
from fabric.planning.machine_workers import remembered


def test_workers_are_measured_and_fitted(tmp_path, monkeypatch):
    monkeypatch.setenv("FABRIC_CACHE", str(tmp_path / "cache"))
    said = []
    found = bench("workers", repeats=1, out=tmp_path, quick=True, progress=said.append)
    assert found == json.loads(json.dumps(found))
    figures = found["figures"]
    for width in (32, 64, 128):
        assert 0 < figures[f"width {width}: 2 workers, strong efficiency"]["value"] < 2
        assert 0 < figures[f"width {width}: 2 workers, exposed share"]["value"] < 1
    assert {f"{x} of {of}" for x in ("alpha", "beta") for of in ("steps", "all-reduces alone")} <= set(
        figures
    )
    assert found["fit"]["n"] == 6
    assert found["fit_alone"]["computing"] == {}
    assert found["gradient_bytes"]["width 64"] > 2 * found["gradient_bytes"]["width 32"]
    assert len(said) == 2
    assert remembered() is None, "a quick measurement is not kept"


def test_a_rank_that_fails_says_why():
    from fabric.bench.ranks import Ranks
    from fabric.bench.training import OURS, Training, decoder

    with Ranks(1, {"w": Training(OURS, "fp32", False, decoder(32, 1, 16, 64), 2, 16, 1)}) as ranks:
        assert set(ranks.ask({"train": "w", "times": 1})) == {"seconds"}, "alone there is nothing to wait for"
        with pytest.raises(KeyError, match="other"):
            ranks.ask({"train": "other", "times": 1})
