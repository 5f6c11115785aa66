"""SQuAD's answers: the official script's numbers, and its files with every mistake told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data.labelled.spans import read_squad
from fabric.data.rows import TaskDataError
from fabric.evaluate.answers import exact, f1, normalised

REAL = os.environ.get("FABRIC_DATA")
WORDS = st.sampled_from(
    [
        "the",
        "The",
        "a",
        "an",
        "Paris",
        "paris,",
        "in",
        "18",
        "1,800",
        "theatre",
        "é",
        "-",
        "--",
        "U.S.",
        "\n",
        "another",
    ]
)
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_they_are_the_official_numbers(guess, references):
    """As lm-evaluation-harness has the official script; of v1.1's, which knows no empty answer, F1 of the others."""
    official = pytest.importorskip("lm_eval.tasks.super_glue.record.t5_utils")
    assert normalised(guess) == official.normalize_squad(guess)
    assert exact(guess, references) == official.squad_em_agg([(guess, f"0_{r}") for r in references])
    some = [r for r in references if normalised(r)]
    if some and normalised(guess):
        assert f1(guess, some) == pytest.approx(official.squad_f1_agg([(guess, f"0_{r}") for r in some]))


@pytest.mark.parametrize(
    ("guess", "reference", "is_exact", "overlap"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0, 1.0),
        ("in Paris, France", "Paris", 0.0, 0.5),
        ("", "", 1.0, 1.0),
        ("", "Paris", 0.0, 0.0),
        ("the", "", 1.0, 1.0),
    ],
)
def test_known_ones(guess, reference, is_exact, overlap):
    assert exact(guess, [reference]) == is_exact
    assert f1(guess, [reference]) == pytest.approx(overlap)


def test_without_references_there_is_nothing_to_judge_by():
    for judge in (exact, f1):
        with pytest.raises(ValueError, match="at least one reference"):
            judge("Paris", [])


def squad(**changes):
    question = {
        "id": "q1",
        "question": "Where?",
        "answers": [{"text": "Paris", "answer_start": 7}],
        **changes,
    }
    return {
        "version": "v2.0",
        "data": [{"title": "T", "paragraphs": [{"context": "It was Paris.", "qas": [question]}]}],
    }


def test_questions_are_read(tmp_path):
    file = tmp_path / "dev.json"
    file.write_text(json.dumps(squad()))
    (found,) = read_squad(file)
    assert (found.id, found.title, found.question, found.answers) == ("q1", "T", "Where?", (("Paris", 7),))
    assert found.references == ["Paris"]
    file.write_text(json.dumps(squad(answers=[], is_impossible=True)))
    (found,) = read_squad(file)
    assert (found.answers, found.is_impossible, found.references) == ((), True, [""])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "dev.json cannot be read"),
        ("[]", "an object with `data`, not a list"),
        ('{"data": []}', "holds no questions"),
        ('{"dat": []}', "no field 'data'"),
        ('{"data": [{"title": "T"}]}', r"data\[0\]: no field 'paragraphs'"),
        (json.dumps(squad(answers=[])), r"qas\[0\]: it has no answers and is not said to be impossible"),
        (
            json.dumps(squad(answers=[{"text": "Paris", "answer_start": 6}])),
            "'Paris' does not stand at character 6",
        ),
        (
            json.dumps(squad(answers=[{"text": "Paris", "answer_start": "7"}])),
            "does not stand at character '7'",
        ),
        (json.dumps(squad(question=None)), "question = None is no text"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, text, said):
    file = tmp_path / "dev.json"
    file.write_text(text)
    with pytest.raises(TaskDataError, match=said):
        read_squad(file)


@pytest.mark.skipif(REAL is None, reason="no FABRIC_DATA")
def test_real_files_are_read():
    found = read_squad(Path(str(REAL)) / "squad" / "dev-v1.1.rebuilt.json")
    assert len(found) == 10570
    assert all(exact(q.references[0], q.references) == 1.0 for q in found[:500])
