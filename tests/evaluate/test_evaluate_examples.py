"""A trial's own examples: what it is asked and when, and what is told of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fabric
from fabric.data import DataConfig
from fabric.data.example_cache import ExampleCache
from fabric.data.examples.base import UNASKED
from fabric.evaluate.examples import Asked, outcomes_of
from fabric.evaluate.lm import score
from fabric.evaluate.subject import Subject
from fabric.evaluate.tasks.examples import ExamplesTask
from fabric.trained import load_trained

ROWS = Path(__file__).parent / "rows"
MODEL = {
    "d_model": 32,
    "n_layers": 1,
    "max_seq_len": 96,
    "mixer": {"kind": "mha", "n_heads": 2},
    "ffn": {"kind": "swiglu", "d_ff": 32},
}
JOBS = {
    "classes": ({"kind": "labelled_texts", "dataset": "sst2"}, 64, "classify"),
    "numbers": ({"kind": "labelled_texts", "dataset": "stsb"}, 80, "regress"),
    "tags": ({"kind": "tagged_words", "dataset": "conll2003"}, 48, "tag"),
    "spans": ({"kind": "answer_spans", "dataset": "squad_v2", "question_tokens": 24, "overlap": 12}, 96, "span"),
    "recall": ({"kind": "mqar", "n_pairs": 4, "vocab_size": 64, "n_train": 300, "n_validation": 40, "n_test": 50},
               32, "answers"),
}  # fmt: skip


def job_of(name: str) -> dict:
    examples, seq_len, objective = JOBS[name]
    folder = {} if objective == "answers" else {"folder": str(ROWS)}
    return {
        "schema": 1,
        "name": name,
        "base": {
            "model": {**MODEL, "causal": objective in ("answers", "classify", "regress")},
            "data": {"examples": {**examples, **folder}, "seq_len": seq_len},
            "train": {
                "tokens": 12 * 8 * seq_len,
                "batch_size": 8,
                "objective": {"kind": objective},
                "optimizer": {"kind": "adamw", "lr": 3e-3},
                "schedule": {"kind": "constant"},
            },
            "evaluate": {"times": 1, "val_tokens": 16 * seq_len},
        },
        "search": {"mode": "grid", "seeds": 1, "axes": [{"arms": [{"name": "one"}]}]},
    }


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> dict[str, Path]:
    """A trained trial of each kind."""
    out = tmp_path_factory.mktemp("runs")
    found = {}
    for name in JOBS:
        fabric.sweep(job_of(name), out=out, runner="inline")
        (found[name],) = (out / name / "trials").iterdir()
    return found


@pytest.mark.parametrize("name", JOBS)
def test_outcomes_do_not_depend_on_the_batch(trials, name):
    trained = load_trained(trials[name])
    spec, cache = trained.trial.spec, trained.trial.cache()
    assert isinstance(cache, ExampleCache)
    asked = Asked.of_cache(cache, "test")
    how = trained.model, spec.train.objective, spec.data.examples, asked
    found = [outcomes_of(*how, batch_size=size) for size in (1, 7, 32)]
    for other in found[1:]:
        assert len(other) == len(found[0])
        for a, b in zip(other, found[0], strict=True):
            for key in a:
                if isinstance(a[key], float):
                    assert a[key] == pytest.approx(b[key], abs=1e-5)
                else:
                    assert a[key] == b[key]


@pytest.mark.parametrize("name", JOBS)
def test_what_was_said_while_the_loss_was_taken_is_not_asked_again(trials, name):
    trained = load_trained(trials[name])
    spec, cache = trained.trial.spec, trained.trial.cache()
    objective, seq_len = spec.train.objective, spec.data.seq_len
    whole = score(trained.model, cache, "test", seq_len, objective=objective, read=True)
    assert len(whole.said) == cache.n_rows("test", seq_len)
    asked = Asked.of_cache(cache, "test")
    how = objective, spec.data.examples, asked
    found = outcomes_of(None, *how, said=whole.said)  # with no model to ask
    assert found == outcomes_of(trained.model, *how, batch_size=8)
    some = whole.said[: asked.n_rows - 1]
    assert len(outcomes_of(trained.model, *how, said=some)) == len(found)
    with pytest.raises(AttributeError):
        outcomes_of(None, *how, said=some)


@pytest.mark.parametrize("name", JOBS)
def test_a_trial_is_asked_what_it_was_trained_to_answer(trials, name, tmp_path):
    (found,) = fabric.measure(trials[name], ["examples"], out=tmp_path)
    headline = {"recall": "accuracy", "classes": "accuracy", "numbers": "pearson"}.get(name, "f1")
    assert next(iter(found.scores)) == headline
    assert found.n_items == len(found.outcomes) == {"recall": 50, "spans": 60, "tags": 24}.get(name, 24)
    for taken in found.scores.values():
        assert taken.low is None or taken.low <= taken.value <= taken.high
    (again,) = fabric.measure(trials[name], ["examples"], out=tmp_path)
    assert again.was_kept
    assert again.scores == found.scores
    (few,) = fabric.measure(trials[name], ["examples:split=test"], limit=5, out=tmp_path)
    assert few.n_items == 5
    if name != "spans":  # of which none is declined where the first five have all an answer
        for key, value in found.outcomes[0].items():
            assert few.outcomes[0][key] == (pytest.approx(value) if isinstance(value, float) else value)


def test_the_records_hold_the_official_metrics(trials):
    store_record = load_trained(trials["tags"]).trial.record
    final = store_record.final()
    (validation,) = fabric.measure(trials["tags"], ["examples:split=validation"])
    assert final["task.examples.accuracy"] > 0
    assert validation.n_items == 24
    test = store_record.evaluation("test-all")
    (measured,) = fabric.measure(trials["tags"], ["examples"])
    assert test["examples"]["scores"]["accuracy"]["value"] == measured.scores["accuracy"].value
    assert store_record.evaluation("outcomes-test-all")["outcomes"] == list(measured.outcomes)


def test_a_synthetic_task_is_asked_at_other_sizes(trials):
    same, more = (
        fabric.measure(trials["recall"], [task])[0]
        for task in ("examples", "examples:n_pairs=8,seq_len=64,n_test=30")
    )
    assert same.n_items == 50
    assert more.n_items == 30
    assert {o["n_asked"] for o in more.outcomes} == {8}
    assert more.task == "examples:n_pairs=8,seq_len=64,n_test=30"


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("examples:n_pair=8", "n_pair: Extra inputs are not permitted .*examples mqar have n_train"),
        ("examples:n_pairs=many", "n_pairs: Input should be a valid integer"),
        ("examples:n_pairs=9", "seq_len=32 with n_pairs=9"),
        ("examples:seq_len=128", "seq_len=128 is more than the model's max_seq_len=96"),
        ("examples:seq_len=x", "seq_len='x' is no number of positions"),
        ("examples:vocab_size=4096", "4096 ids, and the model has 64"),
        ("examples:split=train", "split='train'"),
        ("sst2", "no causal language model .*its examples make ids of their own"),
    ],
)
def test_mistakes_are_told_before_the_weights_are_read(trials, task, said, monkeypatch):
    monkeypatch.setattr("fabric.trained._last_weights", lambda record: pytest.fail("weights were read"))
    monkeypatch.setenv("FABRIC_DATA", str(ROWS))
    with pytest.raises(ValueError, match=said):
        fabric.measure(trials["recall"], [task])


def test_labelled_examples_of_another_choice_say_what_was_trained_on(trials):
    trained = trials["classes"]
    for setting in ("split_seed=1", "n_train=3"):
        with pytest.raises(ValueError, match=r"what was trained on is as it is; leave it out"):
            fabric.measure(trained, [f"examples:{setting}"])
    with pytest.raises(ValueError, match="trained to choose one of 2 answers, and these ask for one of 3"):
        fabric.measure(trained, ["examples:dataset=mnli"])
    (found,) = fabric.measure(trained, ["examples:dataset=sst2,n_test=5"])
    assert found.n_items == 5


def test_a_kept_result_of_other_rows_is_not_taken(trials, tmp_path, monkeypatch):
    monkeypatch.setattr("fabric.evaluate.tasks.examples.ExamplesTask.depends_on", lambda *_: "old rows")
    (first,) = fabric.measure(trials["classes"], ["examples:n_test=5"], out=tmp_path)
    monkeypatch.undo()
    (second, third) = (
        fabric.measure(trials["classes"], ["examples:n_test=5"], out=tmp_path)[0] for _ in range(2)
    )
    assert (first.was_kept, second.was_kept, third.was_kept) == (False, False, True)
    depends = ExamplesTask(name="examples", about="", changes=(("n_test", 5),)).depends_on
    subject = Subject.of(load_trained(trials["classes"]))
    assert depends(subject, tmp_path)["content"]
    assert depends(subject, tmp_path) == depends(subject, tmp_path)


def test_a_target_without_examples_is_told(trials, tmp_path):
    body = job_of("recall")
    body["name"] = "text"
    del body["base"]["data"]["examples"], body["base"]["train"]["objective"]
    (tmp_path / "text.txt").write_text("\n\n".join(f"It was said {i} times." for i in range(400)))
    body["base"]["data"] |= {"corpus": str(tmp_path / "text.txt"), "tokenizer": "bytes"}
    body["base"]["model"]["causal"] = True
    fabric.sweep(body, out=tmp_path, runner="inline")
    (trial,) = (tmp_path / "text" / "trials").iterdir()
    with pytest.raises(ValueError, match="was not trained on labelled examples"):
        fabric.measure(trial, ["examples"])
    for name in ("classes", "tags"):
        with pytest.raises(ValueError, match=r"no causal language model \(objective .*eval --tasks examples"):
            fabric.measure(trials[name], ["sst2"], data=ROWS)


def test_two_trials_are_compared_by_item(trials):
    found = fabric.compare(trials["tags"], trials["tags"], ["examples"])
    assert {c.metric for c in found} >= {"f1", "precision", "recall", "accuracy", "sentences"}
    assert all(c.difference.value == 0 and c.verdict == "within noise" for c in found)


def test_a_readout_is_neither_exported_nor_continued(trials, tmp_path):
    from fabric.exporting import export, generate

    with pytest.raises(ValueError, match=r"answers by a readout \(classify\)"):
        export(trials["classes"], tmp_path / "out")
    with pytest.raises(ValueError, match="no causal language model"):
        generate(trials["classes"])
    body = job_of("classes")
    body["base"]["model"] = {"from": str(trials["classes"])}
    with pytest.raises(ValueError, match="its weights are no language model's"):
        fabric.plan(body, out=tmp_path)


def test_what_is_kept_of_a_window_is_plain_json():
    config = DataConfig.model_validate({"examples": {**JOBS["spans"][0], "folder": str(ROWS)}, "seq_len": 96})
    from fabric.data.tokenizer import ByteTokenizer

    built = config.examples.built("test", 96, ByteTokenizer())
    assert json.loads(json.dumps(list(built.items))) == list(built.items)
    assert (built.targets_NT != UNASKED).any()
    assert isinstance(built.items[0]["ends"], list)
    assert torch.tensor(built.items[0]["ends"]).diff().min() >= 0
