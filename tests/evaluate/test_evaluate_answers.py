"""Exact match and F1 of answers against a second writing of the official definition; SQuAD's files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.evaluate.answers import exact, f1, normalised
from fabric.evaluate.rows import TaskDataError
from fabric.evaluate.squad import read_squad

REAL = os.environ.get("FABRIC_DATA")
WORDS = st.sampled_from(
    ["the", "a", "An", "cat", "Cat!", "dog", "theory", "12", "1,2", "-", "é", "\u2019s", "."]
)
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)
CONTEXT = "Rain fell on Turin. Nobody saw it."


def test_vectors():
    assert normalised(" The  quick, (brown) a-fox!") == "quick brown afox"
    assert exact("the Cat.", ["a cat"]) == 1
    assert exact("cats", ["a cat", "dog"]) == 0
    assert f1("cat sat", ["the cat", "dog"]) == pytest.approx(2 / 3)
    assert f1("cat cat", ["cat"]) == pytest.approx(2 / 3)  # a word counts as often as both have it
    assert (f1("", [""]), f1("The", [""]), f1("cat", [""]), f1("", ["cat"])) == (1, 1, 0, 0)
    for wrong in ([], "cat"):
        with pytest.raises(ValueError, match="list of texts"):
            f1("cat", wrong)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_as_the_official_definition(guess, references):
    """The oracle is the official normalisation, written out a second way."""

    def words(text: str) -> list[str]:
        kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
        return [w for w in kept.split() if w not in ("a", "an", "the")]

    def one(reference: str) -> float:
        gold, said = words(reference), words(guess)
        if not gold or not said:
            return float(gold == said)
        n, left = 0, list(gold)
        for word in said:
            if word in left:
                left.remove(word)
                n += 1
        if n == 0:
            return 0.0
        precision, recall = n / len(said), n / len(gold)
        return 2 * precision * recall / (precision + recall)

    # \b also splits at signs that are no ASCII punctuation; none of these words has an article beside one.
    assert exact(guess, references) == float(any(words(guess) == words(r) for r in references))
    assert f1(guess, references) == pytest.approx(max(map(one, references)))


def write(folder: Path, *questions: dict) -> Path:
    path = folder / "some.json"
    article = {"title": "Rain", "paragraphs": [{"context": CONTEXT, "qas": list(questions)}]}
    path.write_text(json.dumps({"version": "v2.0", "data": [article]}))
    return path


def qa(**changes: object) -> dict:
    return {
        "id": "1",
        "question": "Where?",
        "answers": [{"text": "Turin", "answer_start": CONTEXT.index("Turin")}],
        **changes,
    }


def test_questions_are_read(tmp_path):
    found = read_squad(write(tmp_path, qa(), qa(id="2", answers=[], is_impossible=True)))
    assert [(q.id, q.title, q.context, q.is_impossible) for q in found] == [
        ("1", "Rain", CONTEXT, False),
        ("2", "Rain", CONTEXT, True),
    ]
    assert found[0].answers == (("Turin", 13),)
    assert [q.references for q in found] == [("Turin",), ("",)]


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (qa(answers=[{"text": "Turin", "answer_start": 12}]), "not at character 12"),
        (qa(answers=[{"text": "Turin", "answer_start": "13"}]), "no character's number"),
        (qa(answers=[]), "has no answer"),
        (qa(is_impossible=True), "is impossible but has answers"),
        (qa(is_impossible="no"), "neither true nor false"),
        ({"id": "1", "question": "Where?"}, "no field 'answers'"),
        (qa(id=1), "is no text"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, question, says):
    path = write(tmp_path, question)
    with pytest.raises(TaskDataError, match=says) as error:
        read_squad(path)
    assert str(path) in str(error.value)
    assert "qas[0]" in str(error.value)


def test_an_id_twice(tmp_path):
    with pytest.raises(TaskDataError, match=r"qas\[1\]: id '1' is that of .*qas\[0\] too"):
        read_squad(write(tmp_path, qa(), qa()))


@pytest.mark.skipif(REAL is None, reason="FABRIC_DATA names no folder of real data")
def test_the_real_development_set():
    assert REAL is not None
    found = read_squad(Path(REAL) / "squad" / "dev-v1.1.rebuilt.json")
    assert len(found) == 10570
    assert sum(len(q.answers) for q in found) == 34726
