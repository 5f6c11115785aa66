"""Labelled files of one's own in the place of published data sets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data import DataConfig
from fabric.data.config import resolve_paths
from fabric.data.corpus import SPLITS
from fabric.data.rows import Table, TaskDataError, read_table
from fabric.data.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
REVIEWS = [
    {"title": f"film {i}", "text": f'it was, "so to say", {i}\nlong', "stars": str(i % 3)} for i in range(40)
]
TEXTS = {"kind": "labelled_texts", "fields": ["title", "text"], "label": "stars", "classes": [0, 1, 2]}
NER = "Ada B-PER\nwrote O\n\nin O\nTurin B-LOC\n\n"


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".tsv":
        lines = ["\t".join(rows[0]), *("\t".join(v.replace("\n", " ") for v in r.values()) for r in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def examples_of(base: Path | None = None, **body):
    config = DataConfig.model_validate({"examples": body, "seq_len": 96})
    return (resolve_paths(config, base) if base is not None else config).examples


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_texts_of_every_form_are_read(tmp_path, suffix):
    parts = {"train": REVIEWS[:20], "validation": REVIEWS[20:30], "test": REVIEWS[30:]}
    files = {split: write(tmp_path / f"{split}.{suffix}", rows) for split, rows in parts.items()}
    examples = examples_of(**TEXTS, files=files)
    for split, rows in parts.items():
        items, remarks = examples.items(split)
        assert [item.texts[0] for item in items] == [row["title"] for row in rows]
        assert [item.target for item in items] == [int(row["stars"]) for row in rows]
        assert remarks == ()
    if suffix != "tsv":
        assert items[0].texts[1] == REVIEWS[30]["text"]
    built = examples.built("test", 96, BYTES)
    asked = built.targets_NT[built.targets_NT >= 0]
    assert asked.tolist() == [int(row["stars"]) for row in parts["test"]]


def test_one_file_is_divided_and_says_so(tmp_path):
    examples = examples_of(**TEXTS, files=write(tmp_path / "all.csv", REVIEWS))
    items = {split: examples.items(split) for split in SPLITS}
    assert {s: len(found) for s, (found, _) in items.items()} == {"train": 28, "validation": 4, "test": 8}
    assert "no training split: the published one of 40 items is divided" in items["test"][1][0]
    names = [item.texts[0] for found, _ in items.values() for item in found]
    assert len(set(names)) == 40


def test_validation_is_cut_out_of_training_where_there_is_none(tmp_path):
    files = {
        "train": write(tmp_path / "a.jsonl", REVIEWS[:30]),
        "test": write(tmp_path / "b.jsonl", REVIEWS[30:]),
    }
    examples = examples_of(**TEXTS, files=files)
    assert [len(examples.items(split)[0]) for split in SPLITS] == [27, 3, 10]


def test_numbers_are_asked_without_classes(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": str(i), "score": i / 8} for i in range(40)])
    examples = examples_of(kind="labelled_texts", files=path, label="score", most=5)
    assert examples.asks == "number"
    targets = {item.texts[0]: item.target * 1e-4 for s in SPLITS for item in examples.items(s)[0]}
    assert targets == pytest.approx({str(i): i / 8 for i in range(40)}, abs=1e-4)


def test_tags_are_entities_or_whatever_is_named(tmp_path):
    (tmp_path / "a.conll").write_text(NER * 10 + "".join(f"word{i} O\n\n" for i in range(30)))
    named = examples_of(kind="tagged_words", files=str(tmp_path / "a.conll"), entities=["PER", "LOC"])
    assert named.about.tags == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert named.about.is_entities
    assert sum(len(named.items(s)[0]) for s in SPLITS) == 50
    listed = examples_of(kind="tagged_words", files=str(tmp_path / "a.conll"), tags=["B-LOC", "B-PER", "O"])
    assert listed.n_answers == 3
    wrong = examples_of(kind="tagged_words", files=str(tmp_path / "a.conll"), entities=["PER"])
    with pytest.raises(
        TaskDataError, match=r"a.conll:4: 'B-LOC' is no tag of these files; allowed: O, B-PER"
    ):
        wrong.items("test")
    column = "\t".join(["1", "Ada", "ada", "PROPN", *"_" * 6])
    (tmp_path / "a.conllu").write_text((column + "\n\n") * 2 + column.replace("Ada", "Eve") + "\n\n")
    split = {"train": str(tmp_path / "a.conllu"), "test": str(tmp_path / "a.conllu")}
    universal = examples_of(kind="tagged_words", files=split)
    assert not universal.about.is_entities
    assert universal.items("test")[0][0].tags == ("PROPN",)


def test_answers_have_squads_form_with_or_without_impossible_questions(tmp_path):
    def article(i: int) -> dict:
        answers = [] if i % 2 else [{"text": "red", "answer_start": 7}]
        question = {"id": str(i), "question": "what is it?", "answers": answers, "is_impossible": bool(i % 2)}
        return {"title": f"t{i}", "paragraphs": [{"context": "it was red.", "qas": [question]}]}

    (tmp_path / "a.json").write_text(json.dumps({"data": [article(i) for i in range(20)]}))
    examples = examples_of(
        kind="answer_spans", files=str(tmp_path / "a.json"), question_tokens=24, overlap=12, unanswerable=True
    )
    found = [q for split in SPLITS for q in examples.items(split)[0]]
    assert len(found) == 20
    assert sum(q.is_impossible for q in found) == 10
    with pytest.raises(
        TaskDataError, match="this one has none; where some have none, say unanswerable: true"
    ):
        examples.model_copy(update={"unanswerable": False}).items("test")


def test_paths_are_the_job_files_and_no_part_of_what_is_read(tmp_path):
    roots = []
    for name in "ab":
        (tmp_path / name).mkdir()
        write(tmp_path / name / "reviews.csv", REVIEWS)
        roots.append(examples_of(tmp_path / name, **TEXTS, files="reviews.csv"))
    cache = tmp_path / "cache"
    assert roots[0].files.all == tmp_path / "a" / "reviews.csv"
    first, second = (examples.identity(cache) for examples in roots)
    assert first == second
    assert str(tmp_path) not in json.dumps(first)
    other = examples_of(tmp_path / "a", **{**TEXTS, "classes": [2, 1, 0]}, files="reviews.csv")
    assert other.identity(cache) != first
    with pytest.raises(ValueError, match="'none.csv' does not exist: neither"):
        examples_of(tmp_path, **TEXTS, files="none.csv")
    # Which file is which split counts as well.
    write(tmp_path / "a" / "two.csv", REVIEWS[:30])
    both = {"train": "two.csv", "test": "reviews.csv"}
    swapped = {"test": "two.csv", "train": "reviews.csv"}
    ids = [examples_of(tmp_path / "a", **TEXTS, files=f).identity(cache) for f in (both, swapped)]
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"kind": "labelled_texts"}, r"give dataset \(one of sst2, .*\) or files of your own"),
        ({**TEXTS, "dataset": "sst2"}, "fields, label, classes: of sst2 this is known"),
        ({**TEXTS, "dataset": "sst2", "files": "a.csv"}, "files of your own, not both"),
        ({**TEXTS, "files": {"train": "a.csv"}}, "files has train; give train and test"),
        ({**TEXTS, "files": {"train": "a.csv", "all": "b.csv"}}, "files has train, all; give"),
        ({**TEXTS, "files": {}}, "files has nothing; give"),
        ({**TEXTS, "files": "a.csv", "folder": "b"}, "write the paths of files whole"),
        ({**TEXTS, "files": "a.csv", "most": 3}, "or most: the largest number it can be, not both"),
        ({"kind": "labelled_texts", "files": "a.csv"}, "say what the label of your files is"),
        ({**TEXTS, "files": "a.csv", "classes": ["a", "a"]}, "must be two different ones or more"),
        ({**TEXTS, "files": "a.xlsx"}, r"a.xlsx: unknown form; allowed: .csv, .tsv, .json"),
        ({**TEXTS, "files": "a.csv", "fields": ["text", "stars"]}, "must all be different"),
        ({**TEXTS, "files": "a.csv", "fields": ["text", "text"]}, "must all be different"),
        ({**TEXTS, "files": "a.csv", "classes": [True, False]}, "write such names in quotes"),
        ({"kind": "labelled_texts", "files": "a.csv", "most": 0.01}, "most: 0.01 is too little"),
        ({"kind": "tagged_words", "files": "a.conll", "entities": ["B-PER"]}, "'B-PER' is no type"),
        ({"kind": "tagged_words", "files": "a.conll", "entities": [""]}, "'' is no type"),
        ({"kind": "tagged_words", "files": "a.conll"}, "say what is tagged in your files"),
        ({"kind": "tagged_words", "files": "a.conll", "tags": ["O"], "entities": ["P"]}, "not both"),
        ({"kind": "tagged_words", "files": "a.conll", "tags": []}, "must be one or more"),
        (
            {"kind": "tagged_words", "files": {"train": "a.conll", "test": "b.conllu"}, "tags": ["O"]},
            r"some are CoNLL-U \(.conllu\) and some are not",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_error(body, message):
    with pytest.raises(ValueError, match=message):
        examples_of(**body)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "title,text,stars\na,b,7\n",
            r"a.csv:2: stars = '7' is no label of .*allowed: '0', '1', '2'",
        ),
        ("a.csv", "title,text\na,b\n", "no field 'stars'"),
        ("a.csv", 'title,text,stars\na,"b,1\n', r"a.csv:2: unexpected end of data"),
        ("a.csv", "title,text,stars\na,1\n", r"a.csv:2: 2 columns where there are 3 \(title, text, stars\)"),
        ("a.csv", "title,text,stars\n", "a.csv holds no rows"),
        ("a.csv", "title,text,stars,stars\na,b,0,1\n", "a.csv:1: two columns are called 'stars'"),
        ("a.jsonl", '{"title": "a", "text": 1, "stars": 1}\n', "text = 1 is no text"),
        ("a.jsonl", '{"title": "a", "text": "b", "stars": [1]}\n', r"stars = \[1\] is no label"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(TaskDataError, match=message):
        examples_of(**TEXTS, files=str(tmp_path / name)).items("train")


def test_a_file_that_changed_is_read_again(tmp_path):
    """Within a process rows are remembered; they were, too, when the file had others."""
    path = tmp_path / "all.csv"
    examples = examples_of(**TEXTS, files=write(path, REVIEWS))
    assert sum(len(examples.items(s)[0]) for s in SPLITS) == 40
    write(path, REVIEWS[:20])
    assert sum(len(examples.items(s)[0]) for s in SPLITS) == 20


def test_items_that_another_choice_trained_on_are_counted(tmp_path):
    files = {
        "train": write(tmp_path / "a.csv", REVIEWS[:30]),
        "test": write(tmp_path / "b.csv", REVIEWS[30:]),
    }
    trained = examples_of(**TEXTS, files=files)
    other = examples_of(**TEXTS, files={"train": files["test"], "test": files["train"]})
    test = other.items("test")[0]
    (said,) = other.trained_on(trained, "test", test)
    assert said == "27 of 30 test items are training items too"  # three are its validation's
    assert trained.items("test")[1] == ("no validation split: 3 training items of 30 are held out for it",)


def test_white_space_and_order_make_no_other_text(tmp_path):
    """Rows are made of stripped texts: what differs in blanks only must not be in two splits, unsaid."""
    rows = [{"title": f" t{i}" + " " * n, "text": "x", "stars": "0"} for i in range(12) for n in range(3)]
    examples = examples_of(**TEXTS, files=write(tmp_path / "a.csv", rows))
    kept = [{item.texts for item in examples.items(split)[0]} for split in SPLITS]
    assert sum(map(len, kept)) == len(set.union(*kept)) == 12
    pairs = [{"title": "a", "text": f"b{i}", "stars": "0"} for i in range(8)]
    turned = [{"title": row["text"], "text": row["title"], "stars": "0"} for row in pairs]
    files = {"train": write(tmp_path / "b.csv", pairs), "validation": write(tmp_path / "c.csv", turned)}
    both = examples_of(**TEXTS, files={**files, "test": files["validation"]})
    assert both.items("test")[1] == ("8 of 8 test items are training items too",)


def test_labels_are_found_as_the_forms_write_them(tmp_path):
    floats = [{"title": str(i), "text": "x", "stars": float(i % 3)} for i in range(9)]
    for suffix in ("jsonl", "parquet"):
        examples = examples_of(**TEXTS, files=write(tmp_path / f"a.{suffix}", floats))
        assert sum(len(examples.items(s)[0]) for s in SPLITS) == 9
    truths = [{"title": str(i), "text": "x", "stars": i % 2 == 0} for i in range(9)]
    body = {**TEXTS, "classes": ["false", "true"]}
    examples = examples_of(**body, files=write(tmp_path / "b.jsonl", truths))
    assert {item.target for s in SPLITS for item in examples.items(s)[0]} == {0, 1}
    long = [{"title": "t" * 200_000, "text": str(i), "stars": "1"} for i in range(4)]
    Path(write(tmp_path / "long.csv", long)).rename(tmp_path / "UP.CSV")
    examples = examples_of(**TEXTS, files=str(tmp_path / "UP.CSV"))
    with pytest.raises(ValueError, match="cannot be divided"):  # read, and all one group
        examples.items("test")


def test_what_was_rounded_and_what_is_not_there_is_said(tmp_path):
    rows = [{"text": str(i), "score": i + 0.00001 * (i % 2)} for i in range(20)]
    files = {"train": write(tmp_path / "a.jsonl", rows), "test": write(tmp_path / "b.jsonl", rows[:5])}
    examples = examples_of(kind="labelled_texts", files=files, label="score", most=20, n_train=50)
    assert "n_train=50 was asked for, and there are 18" in examples.items("train")[1]
    assert "2 of 5 test numbers were rounded to four decimals" in examples.built("test", 32, BYTES).remarks


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "train.csv").mkdir()
    files = {"train": "train.csv", "test": write(tmp_path / "b.csv", REVIEWS)}
    with pytest.raises(ValueError, match="train.csv is a folder; give one file a split"):
        examples_of(tmp_path, **TEXTS, files=files)


def squad_of(path: Path, ids: list[str], titles: bool) -> str:
    articles = []
    for i, name in enumerate(ids):
        question = {"id": name, "question": "what?", "answers": [{"text": "red", "answer_start": 7}]}
        article = {"paragraphs": [{"context": f"it was red {i}.", "qas": [question]}]}
        articles.append({**article, "title": f"t{i}"} if titles else article)
    path.write_text(json.dumps({"data": articles}))
    return str(path)


def test_questions_need_ids_of_their_own_but_no_titles(tmp_path):
    body = {"kind": "answer_spans", "question_tokens": 24, "overlap": 12}
    twice = examples_of(**body, files=squad_of(tmp_path / "a.json", ["0", "1", "0"] * 5, True))
    with pytest.raises(TaskDataError, match=r"a.json data\[2\].* id = '0' is that of .*data\[0\].* too"):
        twice.items("test")
    names = [str(i) for i in range(20)]
    untitled = examples_of(**body, files=squad_of(tmp_path / "b.json", names, False))
    assert [len(untitled.items(s)[0]) for s in SPLITS] == [14, 2, 4]
    # The same ids in two files are not the same questions.
    squad_of(tmp_path / "c.json", names, True)
    squad_of(tmp_path / "d.json", names, True)
    text = (tmp_path / "d.json").read_text().replace("what?", "which?")
    (tmp_path / "d.json").write_text(text)
    files = {"train": str(tmp_path / "c.json"), "test": str(tmp_path / "d.json")}
    assert not any("training items too" in said for said in examples_of(**body, files=files).items("test")[1])


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(FIELD.filter(bool), FIELD), min_size=1, max_size=5))
def test_csv_comes_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    write(path, [{"a": a, "b": b} for a, b in rows])
    assert [tuple(row.fields.values()) for row in read_table(Table((str(path),)), Path("/"))] == rows


def test_a_trial_on_own_files_is_scored_by_its_classes(tmp_path):
    """Outcomes say which classes there are, so that kept ones can be scored without the files."""
    from fabric.evaluate.example_measures import measures_of
    from fabric.evaluate.examples import JUDGES, Answered

    examples = examples_of(**TEXTS, files=write(tmp_path / "all.csv", REVIEWS))
    targets = [np.array([-100, i % 3]) for i in range(9)]
    outcomes = JUDGES["class"](Answered(targets, None, [0] * 9), examples)
    metrics = measures_of(outcomes)
    assert next(iter(metrics)) == "accuracy"
    assert metrics["accuracy"].score(outcomes).value == pytest.approx(1 / 3)
    assert {"f1_0", "f1_1", "f1_2"} <= set(metrics)
