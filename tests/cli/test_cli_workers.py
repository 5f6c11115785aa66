"""Several workers on the command line: `fabric results A B` compares, `fabric plan` predicts."""

from __future__ import annotations

import json
import shutil

import pytest
from cli_kit import write_job

from fabric.planning import machine_workers
from fabric.planning.machine_workers import Timed, fit, remember
from fabric.planning.parallel import Link


@pytest.fixture
def on_two(swept, tmp_path):
    """The folder of the same sweep as two workers would have left it, half as fast again."""
    copy = tmp_path / "on-two" / "tiny"
    shutil.copytree(swept.root, copy)
    for file in copy.glob("trials/*/attempts/*/provenance.json"):
        body = json.loads(file.read_text())
        file.write_text(json.dumps({**body, "ranks": {**body["ranks"], "world": 2}}))
    for file in copy.glob("trials/*/attempts/*/status.json"):
        body = json.loads(file.read_text())
        body["final"]["tokens_per_second"] *= 1.5
        body["final"]["exposed_allreduce_fraction"] = 0.125
        file.write_text(json.dumps(body))
    return copy


def test_results_of_two_folders_compare_their_workers(cli, swept, on_two):
    alone = cli.json("results", swept.root, "--json")
    both = cli.json("results", swept.root, on_two, "--json")
    assert alone.pop("workers") == []
    rows = both.pop("workers")
    assert both == alone, "the other folder's losses are not mixed in"
    assert [(r["arm"], r["workers"], r["batch_size"], r["n"]) for r in rows] == [
        ("norm_placement=pre", 1, 8, 2), ("norm_placement=pre", 2, 8, 2),
        ("norm_placement=sandwich", 1, 8, 2), ("norm_placement=sandwich", 2, 8, 2),
    ]  # fmt: skip
    for one, two in (rows[:2], rows[2:]):
        assert (one["strong"], one["exposed"]) == (1.0, None)
        assert two["strong"] == pytest.approx(0.75)
        assert two["exposed"] == 0.125
    text = cli("results", swept.root, on_two)
    assert "75.0%" in text
    assert "12.5%" in text
    assert "workers" not in cli("results", swept.root)


def test_a_folder_beside_that_holds_nothing(cli, swept, tmp_path):
    cli("results", swept.root, tmp_path, code=2)
    assert f"{tmp_path} is no job folder" in cli.err


def test_the_plan_predicts_several_workers_and_says_that_it_does(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(machine_workers, "_memo", lambda: tmp_path / "none.json")
    options = (write_job(tmp_path), "--out", tmp_path / "nowhere", "--set", "resources.workers=2")
    made = cli.json("plan", *options, "--set", "resources.cluster.mfu=0.7", "--json")
    (found,) = made["predictions"]
    assert [p["workers"] for p in found["points"]] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert [p["workers"] for p in found["points"] if p["speedup"] is None] == [16, 32, 64, 128]
    step = found["step"]
    assert (step["workers"], step["batch_size"]) == (2, 8)
    assert step["seconds"] == pytest.approx(made["arms"][0]["flops_per_token"] * 8 * 32 / (312e12 * 0.7))
    text = cli("plan", *options)
    for words in (
        "prediction, not a measurement",
        "claimed, not measured",
        "7.5x",
        "110x",
        "none measured here",
    ):
        assert words in text


def test_the_plan_predicts_this_machine_once_it_was_measured(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(machine_workers, "_memo", lambda: tmp_path / "fit.json")
    link, sizes = Link(1e-4, 1e-9), (10**6, 10**7, 10**8)
    timed = [Timed(str(b), b, n, b / 1e8 / min(n, 2) + link.ring(n, b)) for b in sizes for n in (1, 2, 4)]
    remember(fit(timed, 2))
    options = ("--out", tmp_path / "nowhere", "--set", "resources.workers=2", "--json")
    here, gpus = cli.json("plan", write_job(tmp_path), *options)["predictions"]
    assert (here["where"], gpus["where"]) == ("this machine", "GPUs")
    assert [p["workers"] for p in here["points"]] == [1, 2, 4]
    assert not any(p["claimed"] for p in here["points"])


def test_a_cluster_that_makes_no_sense_is_one_line(cli, tmp_path):
    cli("plan", write_job(tmp_path), "--set", "resources.cluster.mfu=2", code=2)
    assert "resources.cluster.mfu" in cli.err
    assert len(cli.err.strip().splitlines()) == 1
