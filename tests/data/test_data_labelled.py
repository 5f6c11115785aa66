"""Labelled data sets: read in their published forms, divided without leaks, encoded so that answers can be found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data import DataConfig, ExampleCache, prepare
from fabric.data.config import EXAMPLES
from fabric.data.corpus import SPLITS
from fabric.data.examples.base import BEGINS, ENDS, NUMBER_STEP, PADDING, UNASKED, ExamplesConfig
from fabric.data.examples.labelled_texts import _shorten
from fabric.data.labelled.conll import read_sentences
from fabric.data.labelled.spans import SPAN_SETS
from fabric.data.labelled.splits import divided, sample
from fabric.data.labelled.tags import TAG_SETS
from fabric.data.labelled.texts import TEXT_SETS
from fabric.data.rows import TaskDataError
from fabric.data.tokenizer import ByteTokenizer
from models.parts import parts_in

ROWS = Path(__file__).parents[1] / "evaluate" / "rows"
BYTES = ByteTokenizer()
SPANS = {"kind": "answer_spans", "dataset": "squad", "question_tokens": 24, "overlap": 12}
CASES = {
    "sst2": ({"kind": "labelled_texts", "dataset": "sst2"}, 96),
    "stsb": ({"kind": "labelled_texts", "dataset": "stsb"}, 80),
    "conll2003": ({"kind": "tagged_words", "dataset": "conll2003"}, 64),
    "ud": ({"kind": "tagged_words", "dataset": "ud_english_ewt", "asked_at": "first"}, 64),
    "squad": (SPANS, 96),
    "squad_v2": ({**SPANS, "dataset": "squad_v2"}, 96),
}


def config_of(name: str, **changes) -> DataConfig:
    body, seq_len = CASES[name]
    examples = {**body, "folder": str(ROWS), **{k: v for k, v in changes.items() if k != "seq_len"}}
    return DataConfig.model_validate({"examples": examples, "seq_len": changes.get("seq_len", seq_len)})


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> dict[str, ExampleCache]:
    root = tmp_path_factory.mktemp("labelled")
    return {name: prepare(config_of(name), root) for name in CASES}


def test_every_kind_is_tested():
    kinds = {kind for kind, config in parts_in(EXAMPLES, ExamplesConfig).items() if config.READS_TEXT}
    assert {body["kind"] for body, _ in CASES.values()} == kinds


# ---- rows


def rows_of(cache: ExampleCache, split: str) -> np.ndarray:
    return cache.rows(split, cache.seq_len, range(cache.n_rows(split, cache.seq_len)))


@pytest.mark.parametrize("name", CASES)
def test_no_item_is_in_two_splits_and_every_row_asks(caches, name):
    examples = config_of(name).examples
    names = [{examples.name_of(item) for item in examples.items(split)[0]} for split in SPLITS]
    assert all(names)
    if name.startswith("squad"):
        assert not names[0] & names[1]
        assert not names[0] & names[2]
    for split in SPLITS:
        rows = rows_of(caches[name], split)
        assert (rows[:, 1] != UNASKED).any(1).all()
        assert rows[:, 1].max() < examples.n_answers


@pytest.mark.parametrize("name", ["sst2", "stsb"])
def test_texts_are_asked_at_their_end(caches, name):
    examples = config_of(name).examples
    items, _ = examples.items("test")
    for (ids, targets), item in zip(rows_of(caches[name], "test"), items, strict=True):
        n = int((ids != PADDING).sum())
        assert bytes(i for i in ids[:n] if i < 256).decode() == "".join(t.strip() for t in item.texts)
        assert (ids[:n] == BYTES.eos_id).sum() == len(item.texts)
        assert np.flatnonzero(targets != UNASKED).tolist() == [n - 1]
        assert targets[n - 1] == item.target
    if name == "stsb":
        first = TEXT_SETS["stsb"].test
        line = (ROWS / first.files[0]).read_text().splitlines()[1]
        assert items[0].target * NUMBER_STEP == pytest.approx(float(line.split("\t")[-1]))


@pytest.mark.parametrize("asked_at", ["first", "last"])
@pytest.mark.parametrize("seq_len", [64, 17])
def test_every_word_has_its_tag_once_whatever_a_row_holds(asked_at, seq_len):
    config = config_of("conll2003", asked_at=asked_at, seq_len=seq_len)
    examples = config.examples
    built = examples.built("test", seq_len, BYTES)
    sentences, _ = examples.items("test")
    found: dict[int, list[tuple[str, str]]] = {}
    for ids, targets, item in zip(built.ids_NT, built.targets_NT, built.items, strict=True):
        n, begin = int((ids != PADDING).sum()), 0
        asked = np.flatnonzero(targets != UNASKED)
        ends = [*(asked[1:] - 1), n - 1] if asked_at == "first" else asked
        for at, end in zip(asked, ends, strict=True):
            word = bytes(ids[begin : end + 1].tolist()).decode(errors="replace").removeprefix(" ")
            found.setdefault(item["owner"], []).append((word, examples.about.tags[targets[at]]))
            begin = int(end) + 1
    assert len(found) == len(sentences)
    for i, sentence in enumerate(sentences):
        assert found[i] == list(zip(sentence.words, sentence.tags, strict=True))


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_marked_spans_are_the_answers(caches, name):
    examples = config_of(name).examples
    for split in SPLITS:
        questions = {q.id: q for q in examples.items(split)[0]}
        built = examples.built(split, CASES[name][1], BYTES)
        answered = set()
        for targets, item in zip(built.targets_NT, built.items, strict=True):
            question = questions[item["owner"]]
            asked = targets[targets != UNASKED]
            assert len(asked) == len(item["ends"]) + 1, "the window's tokens, and none of them"
            (begin,), (end,) = (np.flatnonzero(asked & mark) for mark in (BEGINS, ENDS))
            if begin == len(asked) - 1:
                assert end == begin
                assert split != "train" or not question.answers
                continue
            starts = [0, *item["ends"]]
            text = item["text"][starts[begin] : item["ends"][end]].strip()
            assert text == question.answers[0][0]
            answered.add(question.id)
        assert answered == {q.id for q in questions.values() if q.answers}


def test_windows_hold_the_whole_context(caches):
    examples = config_of("squad").examples
    built = examples.built("test", 96, BYTES)
    texts: dict[str, set[str]] = {}
    for item in built.items:
        texts.setdefault(item["owner"], set()).add(item["text"])
    for question in examples.items("test")[0]:
        assert len(texts[question.id]) > 1
        assert all(text in question.context for text in texts[question.id])
        assert sum(map(len, texts[question.id])) >= len(question.context)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=2), st.integers(0, 20))
def test_the_longer_text_is_cut_first(lengths, room):
    parts = [list(range(n)) for n in lengths]
    _shorten(parts, room)
    assert sum(map(len, parts)) == min(room, sum(lengths))
    assert all(part == list(range(len(part))) for part in parts), "at its end"
    if len(parts) == 2:
        short, long = sorted(map(len, parts))
        assert long - short <= 1 or min(lengths) == short


# ---- caches and splits


def test_the_cache_keeps_items_and_remarks_and_no_path(caches, tmp_path):
    cache = caches["squad"]
    assert cache.items("train") is None
    assert len(cache.items("test")) == cache.n_rows("test", 96)
    said = cache.remarks("test")[0]
    assert said.startswith("no training split: the published one of 48 items is divided")
    assert str(ROWS) not in (cache.path / "manifest.json").read_text()
    copied = tmp_path / "elsewhere" / "squad"
    copied.mkdir(parents=True)
    (copied / "dev-v1.1.json").write_bytes((ROWS / "squad" / "dev-v1.1.json").read_bytes())
    assert prepare(config_of("squad", folder=str(copied.parent)), tmp_path / "cache").key == cache.key
    assert prepare(config_of("squad", n_train=5), tmp_path / "cache").key != cache.key


def test_items_that_are_trained_on_too_are_counted(tmp_path):
    (tmp_path / "conll2003").mkdir()
    for name, text in (("train", "EU B-ORG\n\nit O\n"), ("valid", "a O\n"), ("test", "it O\n\nshe O\n")):
        (tmp_path / "conll2003" / f"{name}.txt").write_text(text)
    _, remarks = config_of("conll2003", folder=str(tmp_path)).examples.items("test")
    assert remarks == ("1 of 2 test items are training items too",)


def test_fewer_items_are_part_of_more():
    few = {q.id for q in config_of("squad_v2", n_train=7).examples.items("train")[0]}
    more = {q.id for q in config_of("squad_v2", n_train=20).examples.items("train")[0]}
    assert len(few) == 7
    assert few < more
    _, remarks = config_of("squad_v2", n_train=7).examples.items("train")
    assert any(r.startswith("7 of ") for r in remarks)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=12, max_size=60), st.integers(0, 5), st.booleans())
def test_groups_are_never_divided(items, seed, has_train):
    if len(set(items)) < 3:
        with pytest.raises(ValueError, match="cannot be divided"):
            divided({"test": items}, str, seed)
        return
    published = {"train": items, "test": [99]} if has_train else {"test": items}
    found = divided(published, str, seed).items
    assert sorted(i for split in SPLITS for i in found[split] if i != 99) == sorted(items)
    groups = [set(found[split]) - {99} for split in SPLITS]
    assert not groups[0] & groups[1]
    assert not groups[1] & groups[2]
    assert divided(published, str, seed).items == found
    assert sample(items, 5, seed, str) == sample(items, 9, seed, str)[:5]


# ---- files


def test_forms_of_tagged_words(tmp_path):
    file = tmp_path / "a.conll"
    file.write_text("-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\t\na b\tO\nc\tB-x\n")
    assert [(s.words, s.tags) for s in read_sentences(file, "conll")] == [
        (("EU", "rejects"), ("B-ORG", "O")),
        (("a b", "c"), ("O", "B-x")),
    ]
    assert [s.where for s in read_sentences(file, "conll")] == [f"{file}:3", f"{file}:7"]
    sentences = TAG_SETS["ud_english_ewt"].read("test", ROWS)
    assert len(sentences) == 24
    text = (ROWS / "ud-english-ewt" / "en_ewt-ud-test.conllu").read_text()
    assert "1-2\tinvented" in text
    assert "invented" not in sentences[0].words


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        ("conll", "EU B-ORG\nalone\n", r":2: 'alone' has no word and tag"),
        ("conllu", "1\tEU\tPROPN\n", r":1: 3 columns where CoNLL-U has 10"),
        ("conll", "\n\n", "holds no sentences"),
    ],
)
def test_mistakes_in_files_are_told_with_their_line(tmp_path, form, text, said):
    (tmp_path / "a").write_text(text)
    with pytest.raises(TaskDataError, match=said):
        read_sentences(tmp_path / "a", form)


def test_a_tag_outside_the_set_is_told(tmp_path):
    for name, text in (("train", "EU B-ORG\n"), ("valid", "EU B-ORG\n"), ("test", "a O\n\nEU B-FIRM\n")):
        (tmp_path / "conll2003").mkdir(exist_ok=True)
        (tmp_path / "conll2003" / f"{name}.txt").write_text(text)
    with pytest.raises(
        TaskDataError, match=r"test.txt:3: 'B-FIRM' is no tag of conll2003; allowed: O, B-PER"
    ):
        config_of("conll2003", folder=str(tmp_path)).examples.read()


def test_mistakes_in_settings_are_told(tmp_path):
    with pytest.raises(ValueError, match="no data set is called 'sst3'; did you mean 'sst2'"):
        config_of("sst2", dataset="sst3")
    with pytest.raises(ValueError, match=r"use a seq_len from 39 on"):
        config_of("squad", seq_len=30)
    with pytest.raises(TaskDataError, match=r"its data is not here \(tried: .*wnut17"):
        config_of("conll2003", dataset="wnut17", folder=str(tmp_path)).examples.read()
    (tmp_path / "stsb").mkdir()
    row = "sentence1\tsentence2\tscore\n" + "a\tb\t5.5\n"
    for split in ("train", "dev"):
        (tmp_path / "stsb" / f"{split}.tsv").write_text(row)
    with pytest.raises(TaskDataError, match=r"stsb/train.tsv:2: label = '5.5' is not between 0 and 5"):
        config_of("stsb", folder=str(tmp_path)).examples.read()


@pytest.mark.parametrize("name", sorted(SPAN_SETS))
def test_rows_of_the_hub_are_read_as_files_are(name, monkeypatch, tmp_path):
    files = {"squad": "dev-v1.1.json", "squad_v2": "dev-v2.0.json"}
    body = json.loads((ROWS / "squad" / files[name]).read_text())
    rows = [
        {
            "id": qa["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {
                "text": [a["text"] for a in qa["answers"]],
                "answer_start": [a["answer_start"] for a in qa["answers"]],
            },
        }
        for article in body["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, split: rows)
    ours = SPAN_SETS[name].read("test", None)
    theirs = SPAN_SETS[name].read("test", ROWS)
    assert [(q.id, q.answers, q.is_impossible) for q in ours] == [
        (q.id, q.answers, q.is_impossible) for q in theirs
    ]
