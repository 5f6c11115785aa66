"""A trial's own examples: metrics are those of the field's own scripts, answers are put together from rows, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fabric
from fabric.data import DataConfig
from fabric.data.example_cache import ExampleCache
from fabric.data.examples.base import UNASKED
from fabric.evaluate.example_measures import measures_of
from fabric.evaluate.examples import Answered, Asked, _spans, _tags, entities, outcomes_of
from fabric.evaluate.lm import score
from fabric.trained import load_trained

ROWS = Path(__file__).parent / "rows"
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
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


# ---- metrics against the field's own


def counted(answers, guesses, dataset="sst2"):
    names = ("negative", "positive") if dataset == "sst2" else ("entailment", "neutral", "contradiction")
    return [
        {"answer": names[a], "guess": names[g], "dataset": dataset}
        for a, g in zip(answers, guesses, strict=True)
    ]


@pytest.mark.parametrize("case", range(120))
def test_metrics_of_classes_are_scikit_learns(case):
    sk = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(case)
    n, k = int(random.integers(2, 60)), 2 + case % 2
    answers = random.integers(0, k, n)
    guesses = np.where(random.random(n) < 0.6, answers, random.integers(0, k, n))
    guesses = guesses * (case % 7 != 0)  # now and then one guess for all
    found = measures_of(counted(answers, guesses, "sst2" if k == 2 else "mnli"))
    outcomes = counted(answers, guesses, "sst2" if k == 2 else "mnli")
    names = ("negative", "positive") if k == 2 else ("entailment", "neutral", "contradiction")
    values = {name: measure.score(outcomes).value for name, measure in found.items()}
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(answers, guesses))
    assert values["matthews"] == pytest.approx(sk.matthews_corrcoef(answers, guesses), abs=1e-12)
    labels = list(range(k))
    for metric, of in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        each = of(answers, guesses, labels=labels, average=None, zero_division=0)
        assert [values[f"{metric}_{name}"] for name in names] == pytest.approx(each.tolist())
        assert values[f"{metric}_macro"] == pytest.approx(each.mean())
        if k == 2:
            assert values[metric] == pytest.approx(each[1])


@pytest.mark.parametrize("case", range(100))
def test_correlations_are_scipys(case):
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(case)
    n = int(random.integers(3, 80))
    numbers = random.integers(0, 26, n) / 5
    guesses = numbers + random.normal(size=n) if case % 5 else np.round(numbers + random.normal(size=n))
    outcomes = [{"number": float(a), "guess": float(b)} for a, b in zip(numbers, guesses, strict=True)]
    found = {name: m.metric(outcomes) for name, m in measures_of(outcomes).items() if hasattr(m, "metric")}
    if len(set(numbers)) > 1 and len(set(guesses)) > 1:
        assert found["pearson"] == pytest.approx(stats.pearsonr(numbers, guesses)[0], abs=1e-12)
        assert found["spearman"] == pytest.approx(stats.spearmanr(numbers, guesses)[0], abs=1e-12)


def test_a_constant_has_no_correlation():
    outcomes = [{"number": float(i), "guess": 1.0} for i in range(5)]
    assert measures_of(outcomes)["pearson"].score(outcomes).value == 0


def tagged(case: int) -> tuple[list[list[str]], list[list[str]]]:
    """Sentences of tags and guesses, tidy or not."""
    random = np.random.default_rng(case)
    gold, guess = [], []
    for _ in range(int(random.integers(1, 12))):
        n = int(random.integers(1, 14))
        tags = [TAGS[i] for i in random.integers(0, len(TAGS), n)]
        gold.append(tags)
        guess.append([t if random.random() < 0.7 else TAGS[int(random.integers(0, 5))] for t in tags])
    return gold, guess


def outcomes_of_tags(gold, guess):
    answered = Answered(
        [np.array([TAGS.index(t) for t in tags]) for tags in gold],
        [{"owner": i} for i in range(len(gold))],
        [[TAGS.index(t) for t in tags] for tags in guess],
    )

    class Examples:
        class about:
            tags: ClassVar = TAGS
            is_entities: ClassVar = True

    return _tags(answered, Examples)


@pytest.mark.parametrize("case", range(220))
def test_entities_are_seqevals(case):
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    gold, guess = tagged(case)
    outcomes = outcomes_of_tags(gold, guess)
    found = {name: m.score(outcomes).value for name, m in measures_of(outcomes).items()}
    assert found["f1"] == pytest.approx(seqeval.f1_score(gold, guess, zero_division=0))
    assert found["precision"] == pytest.approx(seqeval.precision_score(gold, guess, zero_division=0))
    assert found["recall"] == pytest.approx(seqeval.recall_score(gold, guess, zero_division=0))
    assert found["accuracy"] == pytest.approx(seqeval.accuracy_score(gold, guess))
    report = seqeval.classification_report(gold, guess, output_dict=True, zero_division=0)
    for kind in ("PER", "LOC"):
        if kind in report:
            assert found[f"f1_{kind}"] == pytest.approx(report[kind]["f1-score"])


def brute_entities(tags):
    """CoNLL's rules, word by word: an entity goes on as long as I- of its type follow."""
    found, open_ = [], None
    for i, tag in enumerate(tags):
        goes_on = open_ is not None and tag == f"I-{open_[0]}"
        if open_ is not None and not goes_on:
            found.append((open_[0], open_[1], i - 1))
            open_ = None
        if tag != "O" and not goes_on:
            open_ = (tag[2:], i)
    return found + ([(open_[0], open_[1], len(tags) - 1)] if open_ else [])


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_entities_are_read_by_conlls_rules(tags):
    assert entities(tags) == brute_entities(tags)


def test_entities_of_iob1_and_iob2():
    assert entities(["I-PER", "I-PER", "O", "I-LOC"]) == [("PER", 0, 1), ("LOC", 3, 3)]
    assert entities(["B-PER", "B-PER", "I-PER", "I-LOC"]) == [("PER", 0, 0), ("PER", 1, 2), ("LOC", 3, 3)]
    assert entities(["B-creative-work", "I-creative-work"]) == [("creative-work", 0, 1)]


def test_per_sentence_figures_by_hand():
    outcomes = outcomes_of_tags([["B-PER", "I-PER", "O"], ["B-LOC"]], [["B-PER", "O", "O"], ["B-LOC"]])
    found = {name: m.score(outcomes).value for name, m in measures_of(outcomes).items()}
    assert found["accuracy"] == 3 / 4
    assert found["sentences"] == 1 / 2
    assert (found["precision"], found["recall"], found["f1"]) == (1 / 2, 1 / 2, 1 / 2)
    assert (found["f1_LOC"], found["f1_PER"]) == (1.0, 0.0)


# ---- answers put together


def windows(*said):
    """Answers of windows of one question on "the old bridge of Porto"."""
    text, ends = "the old bridge of Porto", [3, 7, 14, 17, 23]
    items = [
        {"owner": "q", "references": ["old bridge"], "text": text[:14], "ends": ends[:3]},
        {"owner": "q", "references": ["old bridge"], "text": text[7:], "ends": [e - 7 for e in ends[2:]]},
    ]
    return Answered([np.zeros(4)] * 2, items[: len(said)], list(said))


def test_the_best_span_of_all_windows_is_the_answer():
    first, second = {"best": [1, 2, 5.0], "none": 1.0}, {"best": [0, 2, 4.0], "none": 9.0}
    (found,) = _spans(windows(first, second), None)
    assert (found["guess"], found["exact"], found["f1"]) == ("old bridge", 1.0, 1.0)
    assert found["margin"] == 1.0 - 5.0
    (found,) = _spans(windows({"best": [1, 2, 3.0], "none": 1.0}, second), None)
    assert found["guess"] == "bridge of Porto"
    assert found["f1"] == pytest.approx(2 * 1 / (2 + 3))


def test_no_answer_is_given_only_where_questions_may_have_none():
    none_wins = {"best": [1, 2, 0.5], "none": 3.0}
    (found,) = _spans(windows(none_wins), None)
    assert found["guess"] == "old bridge", "every question of this set has an answer"
    answered = windows(none_wins)
    impossible = [{**answered.items[0], "owner": "r", "references": [""]}]
    both = Answered(answered.targets, [*answered.items[:1], *impossible], [none_wins, none_wins])
    found = _spans(both, None)
    assert [o["guess"] for o in found] == ["", ""]
    assert [o["exact"] for o in found] == [0.0, 1.0]
    values = {name: m.score(found).value for name, m in measures_of(found).items()}
    assert values["exact"] == 1 / 2
    assert values["has_answer_exact"] == 0
    assert values["no_answer_exact"] == 1
    assert values["no_answer_f1"] == 1


@settings(deadline=None, derandomize=True, max_examples=80)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(1, 30))
def test_rows_are_taken_by_whole_items(sizes, n):
    items = [{"owner": i} for i, size in enumerate(sizes) for _ in range(size)]
    asked = Asked(lambda which: np.zeros((len(which), 2, 4)), len(items), items)
    assert asked.first(n).n_rows == sum(sizes[:n])
    rows = asked.within(n).n_rows
    whole = [sum(sizes[:i]) for i in range(1, len(sizes) + 1)]
    assert rows in whole
    assert rows <= max(n, sizes[0])
    assert not [w for w in whole if rows < w <= n]


# ---- trials


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
