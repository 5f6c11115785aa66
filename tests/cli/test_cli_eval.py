"""`fabric eval` and `fabric compare`: results that are kept, several targets, Ray's workers, paired differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import fabric
from fabric import measuring
from fabric.data.rows import TaskDataError
from fabric.results import status

ROWS = [
    ("the cat sat on a mat", 1),
    ("the dog saw the mat", 0),
    ("run home dog", 0),
    ("her cat saw the dog", 1),
    ("a mat sat on her", 0),
    ("the dog and the cat run home", 1),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Invented rows of two tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "sst2").mkdir()
    lines = "".join(f"{text}\t{label}\n" for text, label in ROWS)
    (folder / "sst2" / "dev.tsv").write_text(f"sentence\tlabel\n{lines}")
    (folder / "blimp").mkdir()
    pairs = [
        {"sentence_good": t, "sentence_bad": " ".join(reversed(t.split())), "UID": "order"} for t, _ in ROWS
    ]
    (folder / "blimp" / "order.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


@pytest.fixture(scope="module")
def trials(swept):
    """Two finished trials' folders."""
    finished = sorted(s.id for s in status(swept.root) if s.state == "finished")
    return [swept.root / "trials" / name for name in finished[:2]]


def test_what_was_measured_is_kept_and_found_by_all_it_depends_on(cli, trials, data, tmp_path, monkeypatch):
    options = ("--tasks", "sst2,blimp", "--data", data, "--out", tmp_path)
    first = cli.json("eval", trials[0], *options, "--json")
    assert [(m["task"], m["n_items"], m["was_kept"]) for m in first] == [
        ("sst2", 6, False),
        ("blimp", 6, False),
    ]
    assert len(list(tmp_path.glob("evaluations/*/*.json"))) == 2
    again = cli.json("eval", trials[0], *options, "--json")
    assert [m.pop("was_kept") for m in again] == [True, True]
    assert again == [{k: v for k, v in m.items() if k != "was_kept"} for m in first]
    (file,) = tmp_path.glob("evaluations/*/sst2-*.json")
    file.write_text(file.read_text()[:-9])
    assert [m["was_kept"] for m in cli.json("eval", trials[0], *options, "--json")] == [False, True], (
        "damaged"
    )
    for others in (("--limit", 3), ("--tasks", "sst2:calibrated=true,blimp")):
        found = cli.json("eval", trials[0], *options, *others, "--json")
        assert not found[0]["was_kept"], others
    assert not cli.json("eval", trials[1], *options, "--json")[0]["was_kept"], "another model"
    (data / "sst2" / "dev.tsv").write_text("sentence\tlabel\nthe cat sat\t1\n")
    try:
        assert not cli.json("eval", trials[0], *options, "--json")[0]["was_kept"], "other rows"
    finally:
        lines = "".join(f"{text}\t{label}\n" for text, label in ROWS)
        (data / "sst2" / "dev.tsv").write_text(f"sentence\tlabel\n{lines}")


def test_a_task_that_fails_costs_no_other_its_result(trials, data, tmp_path, monkeypatch):
    from fabric.evaluate.options import OptionTask

    run = OptionTask.run

    def failing(self, prepared, subject):
        if self.name == "blimp":
            raise RuntimeError("killed")
        return run(self, prepared, subject)

    monkeypatch.setattr(OptionTask, "run", failing)
    with pytest.raises(RuntimeError, match="killed"):
        fabric.measure(trials[0], ["sst2", "blimp"], data=data, out=tmp_path)
    monkeypatch.undo()
    found = fabric.measure(trials[0], ["sst2", "blimp"], data=data, out=tmp_path)
    assert [m.was_kept for m in found] == [True, False]


def test_the_table_says_whose_scores_they_are(cli, trials, data, tmp_path):
    options = ("--tasks", "sst2", "--data", data, "--out", tmp_path)
    one = cli("eval", trials[0], *options)
    assert "no better than chance" in one
    assert trials[0].name not in one
    two = cli("eval", *trials, *options)
    assert all(trial.name in two.replace("\n", "") for trial in trials)


def test_mistakes_are_told(cli, trials, data, tmp_path):
    for tasks, said in {
        "sst2,sst2": "task sst2 is named twice",
        "": "no task is named",
        "sst": "did you mean 'sst2'",
        "copa": "its data is not here",
    }.items():
        cli("eval", trials[0], "--tasks", tasks, "--data", data, "--out", tmp_path, code=2)
        assert said in cli.err
        assert "Traceback" not in cli.err
    with pytest.raises(ValueError, match="hand their results over in a folder"):
        fabric.measure_all(trials, ["sst2"], data=data, workers=1)
    with pytest.raises(TaskDataError, match="its data is not here"):
        fabric.compare(*trials, ["copa"], data=data)


def test_two_targets_are_compared_item_by_item(cli, trials, data, tmp_path):
    found = cli.json("compare", *trials, "--tasks", "sst2,blimp", "--data", data, "--out", tmp_path, "--json")
    of = {m.task: m for m in fabric.measure(trials[0], ["sst2", "blimp"], data=data, out=tmp_path)}
    other = {m.task: m for m in fabric.measure(trials[1], ["sst2", "blimp"], data=data, out=tmp_path)}
    assert [c["task"] for c in found] == ["sst2", "blimp"]
    for c in found:
        a, b = of[c["task"]].scores["accuracy"].value, other[c["task"]].scores["accuracy"].value
        assert (c["a"], c["b"]) == (a, b)
        assert c["difference"]["value"] == pytest.approx(b - a)
        assert c["verdict"] == "within noise", "six items"
        assert c["p_holm"] >= c["difference"]["p"]
    (same, _) = fabric.compare(trials[0], trials[0], ["sst2", "blimp"], data=data, out=tmp_path)
    assert (same.difference.value, same.difference.p, same.verdict) == (0.0, 1.0, "within noise")
    assert "within noise" in cli("compare", *trials, "--tasks", "sst2", "--data", data, "--out", tmp_path)


@pytest.fixture(scope="module")
def yaml_file(tmp_path_factory):
    """A task of lm-evaluation-harness on the same rows."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra eval)")
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"t": t, "y": y}) + "\n" for t, y in ROWS))
    body = {
        "task": "local_rows",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "rows.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{t}}",
        "doc_to_choice": ["no", "yes"],
        "doc_to_target": "y",
        "metric_list": [{"metric": "acc"}, {"metric": "mcc"}],
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(body))
    return folder / "task.yaml"


@pytest.mark.slow
def test_tasks_of_lm_evaluation_harness_stand_beside_ours(
    cli, trials, data, yaml_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    both = ("--tasks", "sst2", "--harness", yaml_file, "--data", data, "--out", tmp_path)
    ours, theirs = cli.json("eval", trials[0], *both, "--json")
    assert (ours["task"], theirs["task"], theirs["n_items"]) == ("sst2", "local_rows", 6)
    assert set(theirs["metrics"]) == set(theirs["standard_errors"]) == {"acc,none", "mcc,none"}
    assert theirs["chance"][0] == 0.5
    kept = json.loads(Path(theirs["path"]).read_text())
    assert Path(theirs["path"]).is_relative_to(tmp_path / "evaluations")
    assert (kept["metrics"], kept["seed"]) == (theirs["metrics"], 0)
    table = cli("eval", *trials, "--harness", yaml_file, "--out", tmp_path)
    assert table.count("local_rows") == 4
    assert f"{theirs['metrics']['acc,none']:.4f}" in table
    assert "bootstrapping" not in table


def test_what_is_wrong_with_harness_tasks_is_told_before_anything_is_measured(
    cli, trials, data, yaml_file, tmp_path
):
    gone = tmp_path / "gone.yaml"
    cli("eval", trials[0], "--tasks", "sst2", "--data", data, "--harness", gone, "--out", tmp_path, code=2)
    assert "gone.yaml is not there" in cli.err
    assert not (tmp_path / "evaluations").exists()
    for other in (("--data", data), ("--workers", 2)):
        cli("eval", trials[0], "--harness", yaml_file, *other, code=2)
        assert "--harness takes none of them" in cli.err


@pytest.mark.ray
@pytest.mark.slow
def test_ray_s_workers_measure_the_same(ray_session, trials, data, tmp_path):
    tasks = ["sst2", "blimp"]
    there = fabric.measure_all(trials, tasks, data=data, out=tmp_path / "ray", workers=2)
    assert all(m.was_kept for of_target in there for m in of_target), "measured by the workers"
    here = fabric.measure_all(trials, tasks, data=data, out=tmp_path / "here")
    for a, b in zip([m for t in there for m in t], [m for t in here for m in t], strict=True):
        assert (a.target, a.task, a.scores) == (b.target, b.task, b.scores)
        for x, y in zip(a.outcomes, b.outcomes, strict=True):
            assert x["scores"] == pytest.approx(y["scores"], abs=1e-6)
    with pytest.raises(ValueError, match="its data is not here"):
        fabric.measure_all(trials, ["copa"], data=data, out=tmp_path / "ray", workers=1)
    with pytest.raises(ValueError, match="nowhere.*is neither a trial"):
        fabric.measure_all([tmp_path / "nowhere"], tasks, data=data, out=tmp_path / "ray", workers=1)


def test_a_worker_hands_an_error_over_as_text(trials, data, tmp_path):
    import numpy as np

    from fabric.runtime.evaluating import Evaluator
    from fabric.sources import source_hash

    asked = measuring.Request(("sst2",), str(data), None, 0, "fp32", str(tmp_path))
    worker = Evaluator(vars(asked), source_hash())
    targets = np.array([str(trials[0]), str(tmp_path / "none")])
    errors = worker({"target": targets, "task": np.array(["sst2", "sst2"])})["error"]
    assert errors[0] == ""
    assert errors[1].startswith(f"{tmp_path / 'none'}, sst2: ")
