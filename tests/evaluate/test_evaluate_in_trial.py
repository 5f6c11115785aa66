"""Tasks inside a trial: measured while it trains and at its end, by the model as it then is; mistakes cost nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fabric
from fabric.job.document import JobError
from fabric.job.load import load_job
from fabric.job.metrics import metric_info
from fabric.results import results
from fabric.store import Store

SENTENCES = ["the cat sat on a mat", "her dog saw the cat", "the dog and the cat run home", "a mat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("in_trial")
    (root / "text.txt").write_text("\n\n".join(f"{s}. {t}." for s in SENTENCES for t in SENTENCES * 4) * 4)
    (root / "rows" / "blimp").mkdir(parents=True)
    rows = [
        {"sentence_good": s, "sentence_bad": s[::-1], "UID": f"half_{i % 2}"} for i, s in enumerate(SENTENCES)
    ]
    (root / "rows" / "blimp" / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return root


def job(folder: Path, **evaluate) -> Path:
    tasks = {"tasks": ["blimp"], "tasks_data": "rows", "tasks_times": 2, **evaluate}
    body = {
        "schema": 1,
        "name": "tasks",
        "base": {
            "model": {"d_model": 32, "n_layers": 1, "max_seq_len": 64, "mixer": {"kind": "mha", "n_heads": 2},
                      "ffn": {"kind": "swiglu", "d_ff": 32}},
            "data": {"corpus": {"kind": "files", "path": "text.txt"}, "tokenizer": "bytes", "seq_len": 32},
            "train": {"tokens": 2048, "batch_size": 4, "optimizer": {"kind": "adamw", "lr": 0.01},
                      "schedule": {"kind": "constant"}},
            "evaluate": {"times": 1, "val_tokens": 64, "final_val_tokens": 64, "test_tokens": 64, "recall": False,
                         "samples": None, **tasks},
        },
        "search": {"mode": "grid", "seeds": 1, "axes": [{"arms": [{"name": "one"}]}]},
    }  # fmt: skip
    file = folder / "job.yaml"
    file.write_text(json.dumps(body))
    return file


def test_tasks_are_measured_while_training_and_at_the_end(folder, tmp_path):
    end = fabric.sweep(job(folder), out=tmp_path, runner="inline")
    store = Store(end.root)
    (trial,) = store.trial_ids()
    record = store.trial(trial)
    key = "task.blimp.accuracy"
    measured = [(r["step"], r[key]) for r in record.metrics() if key in r]
    assert [step for step, _ in measured] == [8, 16]
    (beside,) = Path(end.root).glob("trials/*/attempts/*/tasks.json")
    kept = json.loads(beside.read_text())["blimp"]
    assert len(kept["outcomes"]) == 4
    outside = fabric.measure(Path(end.root) / "trials" / trial, ["blimp"], data=folder / "rows")[0]
    assert measured[-1][1] == outside.scores["accuracy"].value == kept["scores"]["accuracy"]["value"]
    assert outside.outcomes == kept["outcomes"], "the same weights, the same numbers"
    assert record.final()[key] == measured[-1][1]
    info = metric_info(key)
    assert info is not None
    assert info.better == "higher"
    assert metric_info("task.nope.accuracy") is metric_info("task.blimp.nope") is None
    assert results(end.root) is not None


def test_a_finished_trial_is_measured_on_tasks_that_are_asked_for_later(folder, tmp_path):
    fabric.sweep(job(folder, tasks=[]), out=tmp_path, runner="inline")
    plain = {p: p.read_bytes() for p in tmp_path.glob("tasks/trials/*/attempts/*/metrics-*")}
    end = fabric.sweep(job(folder), out=tmp_path, runner="inline")
    (trial,) = Store(end.root).trial_ids()
    assert {p: p.read_bytes() for p in tmp_path.glob("tasks/trials/*/attempts/*/metrics-*")} == plain
    evaluations = Store(end.root).trial(trial).evaluation_keys()
    finals = [k for k in evaluations if k.startswith("final-")]
    assert len(finals) == 1
    row = Store(end.root).trial(trial).evaluation(finals[0])
    assert "task.blimp.accuracy" in row


def test_how_often_they_are_measured_is_no_part_of_what_a_trial_is(folder):
    specs = [load_job(job(folder, tasks_times=n)) for n in (1, 3)]
    configured = [j.configure() for j in specs]
    assert configured[0].evaluate.tasks_times != configured[1].evaluate.tasks_times


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tasks": ["blimb"]}, "did you mean 'blimp'"),
        ({"tasks": ["blimp", "blimp"]}, "a task is listed twice"),
        ({"tasks": ["blimp:shots=2"]}, "it has no training rows"),
        ({"tasks": ["copa"]}, "its data is not here"),
        ({"tasks_data": "elsewhere"}, "elsewhere"),
        ({"tasks_limit": 0}, "tasks_limit"),
    ],
)
def test_mistakes_are_told_when_the_job_is_read(folder, given, said):
    with pytest.raises(JobError, match=said) as error:
        load_job(job(folder, **given))
    assert "job.yaml:" in str(error.value)


def test_what_the_model_cannot_be_asked_is_told_before_it_trains(folder, tmp_path):
    long = folder / "rows" / "blimp" / "b.jsonl"
    long.write_text(json.dumps({"sentence_good": "a" * 70, "sentence_bad": "b", "UID": "long"}) + "\n")
    try:
        end = fabric.sweep(job(folder), out=tmp_path, runner="inline")
    finally:
        long.unlink()
    (trial,) = Store(end.root).trial_ids()
    status = Store(end.root).trial(trial).status()
    assert status.state == "failed"
    assert status.step == 0
    assert "b.jsonl:1: an option of 70 tokens does not fit" in status.reason["error"]
