"""Questions without an answer: the best threshold against every threshold, its measures, and SQuAD v2 by generation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data.rows import TaskDataError
from fabric.evaluate.answers import exact, f1
from fabric.evaluate.example_measures import known, measures_of
from fabric.evaluate.measures import Whole
from fabric.evaluate.no_answer import best_of_thresholds, best_threshold, best_thresholds
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task

INVENTED = Path(__file__).parent / "rows"
# An answer's score, its no-answer number and whether there is one: few numbers, so that some are equal.
ANSWERED = st.tuples(
    st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from([0.0, 0.2, 0.5, 0.51, 1.0]), st.booleans()
)


def judged(right, numbers, has_answer, threshold):
    """The mean score at a threshold, by its definition."""
    rows = zip(right, numbers, has_answer, strict=True)
    return np.mean([float(not has) if number > threshold else score for score, number, has in rows])


def columns(rows):
    """Of a question without an answer any text is wrong, and only "" is right."""
    return [float(r if h else r == 1) for r, _, h in rows], [n for _, n, _ in rows], [h for *_, h in rows]


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.lists(ANSWERED, min_size=1, max_size=12))
def test_no_threshold_is_better(rows):
    found = best_threshold(*columns(rows))
    every = [-math.inf, *sorted({n for _, n, _ in rows})]
    values = [judged(*columns(rows), t) for t in every]
    assert found.value == pytest.approx(max(values))
    assert judged(*columns(rows), found.threshold) == pytest.approx(found.value), "it does what it says"
    lowest = next(t for t, v in zip(every, values, strict=True) if v == pytest.approx(max(values)))
    assert found.threshold == pytest.approx(lowest) or (lowest == -math.inf and found.threshold == 0.0)


def test_known_ones():
    # Right ones first, then a question without answer, then a wrong one: all but the last two are given.
    assert best_threshold([1, 1, 0, 0], [0.1, 0.4, 0.6, 0.9], [True, True, False, True]) == (0.75, 0.4)
    assert best_threshold([0, 0], [0.1, 0.2], [False, False]) == (1.0, 0.0), "the script's 0.0 declines all"
    assert best_threshold([0, 0], [0.0, 0.2], [False, False]) == (1.0, -math.inf)
    # One of two equal ones alone would be worth 1: no threshold parts them.
    assert best_threshold([1, 0], [0.5, 0.5], [True, False]).value == 0.5


def test_what_cannot_be_swept_is_told():
    with pytest.raises(ValueError, match="0 scores, 0 numbers and 0 questions"):
        best_threshold([], [], [])
    with pytest.raises(ValueError, match="2 scores, 1 numbers and 2 questions"):
        best_threshold([1, 1], [0.1], [True, True])
    with pytest.raises(ValueError, match="question 1 is not a number"):
        best_threshold([1, 1], [0.1, math.nan], [True, True])


def outcome(references, span, margin, guess=None):
    guess = ("" if margin is None or margin > 0 else span) if guess is None else guess
    return {
        "references": references,
        "span": span,
        "margin": margin,
        "guess": guess,
        "exact": exact(guess, references),
        "f1": f1(guess, references),
    }


OUTCOMES = [
    outcome(["Paris"], "Paris", 2.0),  # declined, and would have been right
    outcome(["in Rome"], "Rome", 1.0),
    outcome([""], "Oslo", 3.0),
    outcome(["Bern"], "", None),
    outcome([""], "Kyiv", 2.5),
]


def test_measures_of_outcomes_with_margins():
    found = {name: m.score(OUTCOMES) for name, m in measures_of(OUTCOMES).items()}
    assert found["exact"].value == 2 / 5
    assert (found["best_exact"].value, found["best_f1"].value) == (3 / 5, pytest.approx((3 + 2 / 3) / 5))
    assert best_thresholds(OUTCOMES) == {
        "best_exact": 3 / 5,
        "best_exact_thresh": 2.0,
        "best_f1": pytest.approx((3 + 2 / 3) / 5),
        "best_f1_thresh": 2.0,
    }
    assert found["best_exact"].low <= found["best_exact"].value <= found["best_exact"].high
    assert {"best_exact", "best_f1", "has_answer_f1"} <= set(known())
    answered = [o for o in OUTCOMES if any(o["references"])]
    assert set(measures_of(answered)) == {"f1", "exact"}


def test_two_models_are_compared_each_at_its_best():
    better = [
        outcome(o["references"], o["references"][0], -1.0 if any(o["references"]) else 1.0) for o in OUTCOMES
    ]
    measure = measures_of(OUTCOMES)["best_exact"]
    assert measure.score(better).value == 1.0
    found = measure.difference(OUTCOMES, better)
    assert found.value == pytest.approx(2 / 5)
    assert found.low <= found.value <= found.high
    assert measure.difference(OUTCOMES, OUTCOMES).value == 0


def test_the_bootstrap_is_that_of_any_other_metric():
    """`WholeOf` draws as `Whole` does, which makes the metric anew of every draw."""
    ours, slow = best_of_thresholds(exact), Whole(lambda os: best_thresholds(os)["best_exact"])
    assert ours.score(OUTCOMES) == slow.score(OUTCOMES)
    other = [outcome(o["references"], o["references"][0], 0.5 - i) for i, o in enumerate(OUTCOMES)]
    assert ours.difference(OUTCOMES, other) == slow.difference(OUTCOMES, other)
    assert ours.score(OUTCOMES[:1]) == slow.score(OUTCOMES[:1])
    for empty in (lambda: ours.score([]), lambda: ours.difference(OUTCOMES, OUTCOMES[:2])):
        with pytest.raises(ValueError, match="give at least one|the same items"):
            empty()


# ---- by generation


def test_squad_v2_is_read():
    chosen = task("squad_v2")
    items = chosen.load(Asked(INVENTED))
    none = [i for i in items if i.references == ("",)]
    assert len(items) >= 20
    assert none
    assert len(none) < len(items)
    assert items[0].prompt.startswith(
        "Title: The bridge of Old Harbour (0)\nContext: The bridge of Old Harbour was"
    )
    assert items[0].prompt.endswith(
        '\nQuestion: Who built the bridge?\nIf the context does not answer it, answer "unanswerable".\nAnswer:'
    )
    with pytest.raises(TaskDataError, match="dev-v2.0.json"):
        chosen.load(Asked(INVENTED.parent))


@pytest.mark.parametrize(
    ("text", "references", "is_exact"),
    [
        (" Unanswerable.", [""], 1),
        (" unanswerable", ["Paris"], 0),
        (" Paris", [""], 0),
        (" the Paris!", ["Paris"], 1),
        ("", [""], 1),
    ],
)
def test_declining_is_an_empty_answer(text, references, is_exact):
    found = task("squad_v2").outcome(text, references)
    kind = "has_answer" if any(references) else "no_answer"
    assert found["scores"] == dict.fromkeys(("f1", "exact", f"{kind}_exact", f"{kind}_f1"), is_exact)


def test_metrics_among_some_questions():
    chosen = task("squad_v2")
    pairs = [("Paris", ["Paris"]), ("in Rome", ["Rome"]), ("unanswerable", [""]), ("Bern", [""])]
    outcomes = json.loads(json.dumps([chosen.outcome(*p) for p in pairs]))
    found = {name: score.value for name, score in chosen.scores(outcomes).items()}
    assert found == pytest.approx(
        {
            "f1": (1 + 2 / 3 + 1) / 4,
            "exact": 1 / 2,
            "has_answer_f1": (1 + 2 / 3) / 2,
            "has_answer_exact": 1 / 2,
            "no_answer_f1": 1 / 2,
            "no_answer_exact": 1 / 2,
        }
    )
    assert set(chosen.scores(outcomes[:2])) == {"f1", "exact", "has_answer_f1", "has_answer_exact"}
    assert {d.value for d in chosen.differences(outcomes, outcomes).values()} == {0}


def test_references_that_are_articles_only_count_as_none(tmp_path):
    """As the official script has it."""
    answers = [{"text": "the", "answer_start": 0}]
    qas = [{"id": "1", "question": "Which?", "answers": answers}]
    body = {"data": [{"title": "T", "paragraphs": [{"context": "the word", "qas": qas}]}]}
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "dev-v2.0.json").write_text(json.dumps(body))
    (item,) = task("squad_v2").load(Asked(tmp_path))
    assert item.references == ("",)
