"""DROP: the official numbers, files in both forms with every mistake told, and what a guess' spans are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data.rows import Row, TaskDataError
from fabric.evaluate.drop import exact, f1, normalised, references_of, spans_of
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task

INVENTED = Path(__file__).parent / "rows"
WORDS = st.sampled_from(
    [
        "the",
        "The",
        "a",
        "an",
        "Ames",
        "Boyle",
        "boyle,",
        "ames-boyle",
        "18",
        "18.0",
        "1,800",
        "1800",
        "44-yard",
    ]
    + ["3", "three", "$5", "5%", "inf", "é", "-", "--", "U.S.", "\n", "2.", "theatre", ""]
)
SPANS = st.lists(WORDS, max_size=4).map(" ".join)
ANSWERS = st.lists(SPANS, min_size=1, max_size=4)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(ANSWERS, st.lists(ANSWERS, min_size=1, max_size=3))
def test_they_are_the_official_numbers(guess, references):
    """As lm-evaluation-harness has the official script; it leaves out references whose first span is blank."""
    official = pytest.importorskip("lm_eval.tasks.drop.utils")
    assert [normalised(s) for s in guess] == [official._normalize(s) for s in guess]
    for reference in references:
        assert (exact(guess, [reference]), f1(guess, [reference])) == official.get_metrics(guess, reference)
    told = [r for r in references if r[0].strip()]
    if told:
        found = official.process_results({"answers": list(map(tuple, told))}, guess)
        assert {"em": exact(guess, told), "f1": f1(guess, told)} == found


@pytest.mark.parametrize(
    ("guess", "reference", "is_exact", "overlap"),
    [
        ("Boyle, Ames", ["Ames", "Boyle"], 1, 1.0),
        ("Ames; and the Boyle.", ["Ames", "Boyle"], 1, 1.0),
        ("Ames", ["Ames", "Boyle"], 0, 0.5),  # one of several is not all
        ("Ames, Boyle", ["Ames"], 0, 0.5),
        ("Ames, Ames", ["Ames"], 0, 0.5),
        ("44 yards", ["43 yards"], 0, 0.0),  # another number
        ("yards", ["43 yards"], 0, 0.0),
        ("44 yards", ["yards"], 0, 0.67),
        ("1,800", ["1800.0"], 1, 1.0),
        ("May 3, 1920", ["3 May 1920"], 0, 1.0),
        ("", ["Ames"], 0, 0.0),
    ],
)
def test_known_ones(guess, reference, is_exact, overlap):
    outcome = task("drop").outcome(guess, [reference])
    assert outcome["scores"] == {"f1": overlap, "exact": is_exact}
    assert json.loads(json.dumps(outcome)) == outcome


def test_spans_of_a_text():
    assert spans_of(" Trinidad and Tobago, Peru, and  Chile; 1,000 men ,") == [
        "Trinidad and Tobago",
        "Peru",
        "Chile",
        "1,000 men",
    ]
    assert spans_of(" ") == [""]
    for judge in (exact, f1):
        with pytest.raises(ValueError, match="at least one reference"):
            judge(["Ames"], [])


def answer(number="", spans=(), day="", month="", year=""):
    return {"number": number, "spans": list(spans), "date": {"day": day, "month": month, "year": year}}


def official_file(folder: Path, *pairs: dict) -> Path:
    (folder / "drop").mkdir(exist_ok=True)
    file = folder / "drop" / "drop_dataset_dev.json"
    file.write_text(json.dumps({"game_1": {"passage": "Ames and Boyle scored.", "qa_pairs": list(pairs)}}))
    return file


def test_the_official_file(tmp_path):
    who = {"question": "Who? ", "query_id": "1", "answer": answer(spans=["Ames", "Boyle"])}
    official_file(
        tmp_path,
        {**who, "validated_answers": [answer(spans=["Ames"]), answer(spans=["Ames", "Boyle"]), answer()]},
        {"question": "How many?", "answer": answer(number=2)},
        {"question": "When?", "answer": answer(day="3", year="1920"), "validated_answers": []},
    )
    items = task("drop").load(Asked(tmp_path))
    assert [i.references for i in items] == [(["Ames", "Boyle"], ["Ames"]), (["2"],), (["3 1920"],)]
    assert items[0].prompt == "Passage: Ames and Boyle scored.\nQuestion: Who?\nAnswer:"
    assert items[1].where.endswith("drop_dataset_dev.json game_1 qa_pairs[1]")


def test_rows_with_annotators_apart_are_the_same():
    columns = {"number": ["", "4"], "date": [answer()["date"]] * 2, "spans": [["Ames"], []]}
    row = Row({"answer": answer(spans=["Boyle"]), "validated_answers": columns}, "here")
    assert references_of(row) == [["Boyle"], ["Ames"], ["4"]]


def test_rows_without_annotators_apart():
    """Numbers and dates are answers by themselves; a span twice is two annotators'."""

    def row(spans, types):
        return Row({"answers_spans": {"spans": spans, "types": types}}, "here")

    assert references_of(row(["2", "3", "2"], ["number"] * 3)) == [["2"], ["3"]]
    assert references_of(row(["A", "B", "A", "B"], ["span"] * 4)) == [["A", "B"]]
    assert references_of(Row({"answers_spans": {"spans": ["A", "B"]}}, "here")) == [["A", "B"]]


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ({"question": "Who?"}, r"qa_pairs\[0\]: no field 'answers_spans'"),
        (
            {"question": "Who?", "answer": answer()},
            r"qa_pairs\[0\]: its answers hold no number, spans or date",
        ),
        ({"question": 3, "answer": answer("2")}, r"qa_pairs\[0\]: question = 3 is no text"),
        ({"question": "Who?", "answer": answer(spans=[2])}, r"answer: spans = \[2\] is no list of texts"),
        ({"question": "Who?", "answer": answer(number=[2])}, r"answer: number = \[2\] is no number"),
        (
            {"question": "Who?", "answer": answer("2"), "validated_answers": {"number": ["2"], "spans": []}},
            "validated_answers has no number, date and spans of the same length",
        ),
        (
            {"question": "Who?", "answers_spans": {"spans": ["A"], "types": ["x"]}},
            "types = 'x'.*allowed: 'span'",
        ),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, pair, said):
    official_file(tmp_path, pair)
    with pytest.raises(TaskDataError, match=f"drop_dataset_dev.json.*{said}"):
        task("drop").load(Asked(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "an object of passages by name, not a list"),
        ("{}", "holds no questions"),
    ],
)
def test_other_files_are_told(tmp_path, text, said):
    official_file(tmp_path).write_text(text)
    with pytest.raises(TaskDataError, match=f"drop_dataset_dev.json.*{said}"):
        task("drop").load(Asked(tmp_path))
    with pytest.raises(TaskDataError, match="drop_dataset_dev.json, .*validation.jsonl"):
        task("drop").load(Asked(tmp_path / "nowhere"))


def test_examples_show_how_spans_are_written(tmp_path):
    who = {"question": "Who?", "answer": answer(spans=["Ames", "Boyle"])}
    file = official_file(tmp_path, who)
    (tmp_path / "drop" / "drop_dataset_train.json").write_text(file.read_text())
    (item,) = task("drop:shots=1").load(Asked(tmp_path))
    assert item.prompt.startswith(
        "Passage: Ames and Boyle scored.\nQuestion: Who?\nAnswer: Ames, Boyle\n\nPassage"
    )
