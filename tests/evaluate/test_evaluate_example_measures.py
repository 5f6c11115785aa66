"""Metrics of labelled examples are those of the field's own scripts; answers are put together from rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.evaluate.example_measures import measures_of
from fabric.evaluate.examples import Answered, Asked, _spans, _tags, entities

ANSWERED, UNANSWERABLE = (SimpleNamespace(about=SimpleNamespace(has_impossible=x)) for x in (False, True))
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def counted(answers, guesses, dataset="sst2"):
    names = ("negative", "positive") if dataset == "sst2" else ("entailment", "neutral", "contradiction")
    return [
        {"answer": names[a], "guess": names[g], "classes": list(names), "metrics": ["accuracy"]}
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
    (found,) = _spans(windows(first, second), ANSWERED)
    assert (found["guess"], found["exact"], found["f1"]) == ("old bridge", 1.0, 1.0)
    assert found["margin"] == 1.0 - 5.0
    (found,) = _spans(windows({"best": [1, 2, 3.0], "none": 1.0}, second), ANSWERED)
    assert found["guess"] == "bridge of Porto"
    assert found["f1"] == pytest.approx(2 * 1 / (2 + 3))


def test_no_answer_is_given_only_where_questions_may_have_none():
    none_wins = {"best": [1, 2, 0.5], "none": 3.0}
    (found,) = _spans(windows(none_wins), ANSWERED)
    assert found["guess"] == "old bridge", "every question of this set has an answer"
    answered = windows(none_wins)
    impossible = [{**answered.items[0], "owner": "r", "references": [""]}]
    both = Answered(answered.targets, [*answered.items[:1], *impossible], [none_wins, none_wins])
    assert [o["guess"] for o in _spans(answered, UNANSWERABLE)] == [""], "whatever else is asked with it"
    found = _spans(both, UNANSWERABLE)
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
