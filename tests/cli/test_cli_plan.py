"""`fabric plan`: what is new, finished, double, measured otherwise or trained elsewhere; and that it writes nothing."""

from __future__ import annotations

import json
import shutil

from cli_kit import write_job

from fabric.store import Store


def test_plan_prints_and_writes_nothing(cli, tmp_path):
    job, out = write_job(tmp_path), tmp_path / "nowhere"
    text = cli("plan", job, "--out", out)
    assert "norm_placement=sandwich" in text
    assert "4 trials to train" in text
    assert "unknown" in text
    assert not out.exists()


def test_plan_json(cli, tmp_path):
    job = write_job(tmp_path)
    made = cli.json("plan", job, "--out", tmp_path / "nowhere", "--json", "--set", "search.seeds=3")
    assert made["job"] == "tiny"
    assert len(made["trials"]) == 6
    assert {t["state"] for t in made["trials"]} == {"new"}
    assert {"phase", "arm", "role", "point", "seed", "id", "tokens", "state"} == set(made["trials"][0])
    assert made["detectable"] is None
    assert made["predictions"] == [], "one worker a trial"
    assert made["slots"] >= 1
    assert made["eta_seconds"] > 0
    assert [a["arm"] for a in made["arms"]] == ["norm_placement=pre", "norm_placement=sandwich"]
    assert all(a["peak_memory_bytes"] > 50e6 and a["n_params"] > 1000 for a in made["arms"])


def test_plan_marks_what_is_finished_and_what_is_double(cli, swept):
    made = cli.json("plan", swept.job, "--out", swept.out, "--json")
    assert [t["state"] for t in made["trials"]] == ["finished"] * 4
    assert made["flops"] == made["eta_seconds"] == 0
    assert made["speed_from"] == "finished trials of this job"
    assert made["detectable"] > 0, "the noise of earlier runs of this size is known now"
    axis = "search.axes=[{arms: [{name: a}, {name: b, set: {model.norm_placement: pre}}]}]"
    made = cli.json("plan", swept.job, "--out", swept.out, "--json", "--set", axis)
    assert [t["state"] for t in made["trials"]] == ["finished", "finished", "duplicate", "duplicate"]


def test_a_job_that_measures_otherwise_compares_nothing_with_what_was_measured_before(cli, swept, tmp_path):
    """The same weights are measured again as the job asks now: the table is that of a fresh folder."""
    out, fresh = tmp_path / "runs", tmp_path / "fresh"
    shutil.copytree(swept.out, out)
    job = (str(swept.job), "--set", "evaluate.final_val_tokens=null", "--set", "evaluate.lengths=[16]")
    job = (*job, "--set", "search.axes.0.values=[pre, sandwich, post]")
    made = cli.json("plan", *job, "--out", out, "--json")
    assert [t["state"] for t in made["trials"]] == ["finished, to be measured"] * 4 + ["new"] * 2
    for where in (out, fresh):
        cli("sweep", *job, "--out", where, "--inline")
    tables = [cli.json("results", where / "tiny", "--json")["arms"] for where in (out, fresh)]
    for one, other in zip(*tables, strict=True):
        for key in (
            "arm",
            "mean",
            "low",
            "diff",
            "p_holm",
            "verdict",
            "val_loss_at_16",
            "val_loss_at_equal_tokens",
        ):
            assert one[key] == other[key], (one["arm"], key)
    assert {p.name for p in (out / "tiny" / "trials").glob("*/attempts/2")} == set(), (
        "nothing is trained again"
    )
    study = Store(swept.root).studies()[0]
    assert cli("results", out / "tiny", "--study", study) == cli("results", swept.root), (
        "the old table stands"
    )


def test_what_another_machine_trained_is_marked_and_trained_again_when_asked(cli, swept, tmp_path):
    out = tmp_path / "runs"
    shutil.copytree(swept.out, out)
    (victim, *_) = sorted((out / "tiny" / "trials").iterdir())
    provenance = victim / "attempts" / "1" / "provenance.json"
    body = json.loads(provenance.read_text())
    body["numerics"]["fingerprint"] = "elsewhere"
    provenance.write_text(json.dumps(body))
    made = cli.json("plan", swept.job, "--out", out, "--json")
    states = {t["id"]: t["state"] for t in made["trials"]}
    assert states.pop(victim.name) == "finished, other numerics"
    assert set(states.values()) == {"finished"}
    assert any("1 finished trial was trained under other numerics" in w for w in made["warnings"])
    assert "4 trials to train" not in cli("plan", swept.job, "--out", out)
    assert "elsewhere" in cli("results", out / "tiny"), "the table says which arms are mixed"
    strict = cli.json("plan", swept.job, "--out", out, "--json", "--strict-numerics")
    assert {t["id"]: t["state"] for t in strict["trials"]} == {**states, victim.name: "new"}
    cli("sweep", swept.job, "--out", out, "--inline", "--strict-numerics")
    numbers = {p.name: len(list((p / "attempts").iterdir())) for p in (out / "tiny" / "trials").iterdir()}
    assert numbers == {**dict.fromkeys(states, 1), victim.name: 2}, "only that one was trained again"
    assert "elsewhere" not in cli("results", out / "tiny")


def test_plan_counts_later_phases(cli, tmp_path):
    phases = (
        "search={mode: phases, seeds: 2, axes: [{path: train.optimizer.lr, values: [1e-3, 1e-2], role: nuisance}],"
        " phases: [{name: a, axes: [{path: model.norm_placement, values: [pre, post]}], keep: 2},"
        " {name: b, axes: [{path: model.mixer.qk_norm, values: [none, head]}]}]}"
    )
    made = cli.json("plan", write_job(tmp_path), "--out", tmp_path / "x", "--json", "--set", phases)
    # Each arm: two rates on one tuning seed, two seeds of the result.
    assert len(made["trials"]) == 2 * (2 + 2)
    # Of the later phase's arms, `none` is what both kept ones have, trained by then.
    assert made["later"] == [{"phase": "b", "n_arms": 4, "n_trials": 8, "when": {}}]
    best = [t for t in made["trials"] if t["point"] == "best rate"]
    assert {(t["id"], t["state"]) for t in best} == {("", "new")}


def test_plan_of_what_fits_on_no_machine_is_still_a_plan(cli, tmp_path):
    made = cli.json(
        "plan",
        write_job(tmp_path),
        "--out",
        tmp_path / "x",
        "--json",
        "--set",
        "resources.cpus_per_worker=5000",
    )
    assert made["slots"] == 0
    assert any("this machine cannot run it" in w for w in made["warnings"])


def test_plan_of_an_axis_of_patterns(cli, tmp_path):
    patterns = "[null, [{}, {window: 8, position: nope}], [{}, {kind: mha, n_heads: 4}]]"
    axis = f"search.axes=[{{path: model.mixer_pattern, values: {patterns}}}]"
    made = cli.json("plan", write_job(tmp_path), "--out", tmp_path / "nowhere", "--json", "--set", axis)
    assert [a["arm"] for a in made["arms"]] == [
        "mixer_pattern=none",
        "mixer_pattern={},window=8_position=nope",
        "mixer_pattern={},mha",
    ]
    plain, windowed, wider = (a["n_params"] for a in made["arms"])
    assert plain == windowed
    assert wider == plain + 2 * 32 * 16  # keys and values of two more heads in the second layer
    assert len({t["id"] for t in made["trials"]}) == 6


def test_plan_says_what_auto_became(cli, tmp_path, monkeypatch):
    from fabric.planning import machine_speed

    products = machine_speed.Products(1e11, 9e11, own_kernels=True)
    monkeypatch.setattr(machine_speed, "products", lambda device, threads: products)
    arguments = ["plan", write_job(tmp_path), "--out", tmp_path / "runs", "--set", "train.compile=auto"]
    assert "auto: compile false\n" in cli(*arguments)
    axis = "search.axes=[{path: train.precision, values: [fp32, auto]}]"
    found = cli.json(*arguments, "--set", axis, "--json")["auto"]
    assert found["precision"] == {"bf16": ["main/precision=auto"]}
    assert set(found["compile"]) == {"false"}
    assert "auto: " not in cli("plan", tmp_path / "job.yaml", "--out", tmp_path / "runs")
    differs = {"fp32": ["main/a"], "bf16": ["main/b", "main/c"]}
    from fabric.printing import _became

    assert _became("precision", differs) == "precision fp32 (main/a), bf16 (main/b, main/c)"
