"""BABILong as a task: prompts of a subject, runs, published samples, real data, and what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import models
from fabric.data.rows import TaskDataError
from fabric.data.tokenizer import ByteTokenizer
from fabric.evaluate.babilong import (
    background,
)
from fabric.evaluate.babilong_prompts import TEXTS
from fabric.evaluate.kept import result_key
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task
from fabric.evaluate.tasks.babilong import size_name

REAL = os.environ.get("FABRIC_DATA")
STORY = (
    "1 John travelled to the hallway.\n2 Mary journeyed to the bathroom.\n3 Where is John? \thallway\t1\n"
    "4 John moved to the garden.\n5 Where is John? \tgarden\t4\n1 Daniel went to the office.\n"
    "2 Where is Daniel? \toffice\t1\n"
)
AROUND = (
    " = Ships = \n \n The ship sailed on . It was never seen again , they said .\n \n = = Crew = = \n"
    " No one spoke of it !"
)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "babi" / "en-10k").mkdir(parents=True)
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "babi/en-10k/qa1_single-supporting-fact_test.txt").write_text(STORY)
    (tmp_path / "wikitext-2/test.txt").write_text(AROUND)
    return tmp_path


def subject_of(max_seq_len: int, model=None) -> Subject:
    config = SimpleNamespace(max_seq_len=max_seq_len)
    tokenizer = ByteTokenizer()
    return Subject(
        SimpleNamespace(model=model, config=config, tokenizer=tokenizer, prompt_ids=tokenizer.encode), 256
    )


def test_samples_of_a_subject(folder):
    subject, asked = subject_of(3000), task("babilong_qa1")
    items = asked.load(Asked(folder, seed=3))
    prepared = asked.prepare(items, subject)
    assert prepared.n_context == [700] * 3
    for item, prompt in zip(items, prepared.prompts, strict=True):
        text = bytes(prompt).decode()
        head, rest = text.split("\n<context>\n")
        context, end = rest.split("\n</context>\n\n")
        assert end == f"Question: {item.question}"
        assert text.count("<example>\n") == 2
        assert head.startswith(TEXTS["qa1"].instruction + "\n\n<example>\n")
        assert len(context.encode()) == 700
        assert item.question not in context
        assert max(map(context.count, item.facts)) == 1
        places = [context.index(" " + f) for f in item.facts]
        assert places == sorted(places)
        for fact in item.facts:
            context = context.replace(" " + fact, "", 1)
        assert ("".join(" " + s for s in items[0].background.sentences if len(s) >= 9) * 20).find(
            context
        ) >= 0
    again = asked.prepare(asked.load(Asked(folder, seed=3)), subject)
    assert again.prompts == prepared.prompts
    assert asked.prepare(asked.load(Asked(folder, seed=4)), subject).prompts != prepared.prompts
    few = asked.prepare(asked.load(Asked(folder, limit=1, seed=3)), subject)
    assert few.prompts == prepared.prompts[:1]


def test_facts_alone(folder):
    asked = task("babilong_qa1:length=0")
    items = asked.load(Asked(folder))
    text = bytes(asked.prepare(items, subject_of(3000)).prompts[1]).decode()
    assert text.endswith(
        "<context>\n John travelled to the hallway. Mary journeyed to the bathroom. John moved to the garden.\n"
        "</context>\n\nQuestion: Where is John?"
    )
    assert asked.label == "babilong_qa1:length=0"
    assert asked.run(asked.prepare([], subject_of(3000)), subject_of(3000, _model())).outcomes == []


def test_a_question_with_more_facts_than_an_eighth_of_its_length_is_left_out(folder):
    asked = task("babilong_qa1:length=316")  # 16 of context: 2 facts
    items = asked.load(Asked(folder))
    assert [i.target for i in items] == ["hallway", "office"]
    assert "1 questions with more than 2 facts were left out" in items[0].remarks
    with pytest.raises(
        TaskDataError, match=r"more than 0 facts, length=305 takes no more; set length higher"
    ):
        task("babilong_qa1:length=305").load(Asked(folder))


def test_the_background_is_named_and_is_part_of_what_is_asked(folder):
    asked = task("babilong_qa1")
    (first, *_) = before = asked.load(Asked(folder))
    assert first.remarks == ("the background is WikiText-2's test text: the paper's PG19 is not here",)
    assert len(repr(before)) < 3000
    (folder / "wikitext-2/test.txt").write_text(AROUND.replace("ship", "boat"))
    keys = {result_key(asked, Asked(folder), items, "fp32") for items in (before, asked.load(Asked(folder)))}
    assert len(keys) == 2
    (folder / "wikitext-2/test.txt").unlink()
    found = background(folder)
    assert found.name == "Shakespeare's plays"
    assert len(found.sentences) > 50_000


# ---- running


def _model(max_seq_len: int = 3000):
    torch.manual_seed(0)
    body = {
        "vocab_size": 257,
        "d_model": 16,
        "n_layers": 1,
        "max_seq_len": max_seq_len,
        "mixer": {"kind": "gqa", "n_heads": 2, "n_kv_heads": 1},
        "ffn": {"kind": "swiglu", "d_ff": 16},
    }
    return models.build(models.ModelConfig.model_validate(body)).eval()


def test_a_run(folder):
    subject, asked = subject_of(3000, _model()), task("babilong_qa1")
    ran = asked.run(asked.prepare(asked.load(Asked(folder)), subject), subject)
    assert json.loads(json.dumps(ran.outcomes)) == ran.outcomes
    assert [o["n_context"] for o in ran.outcomes] == [700] * 3
    assert ran.remarks == ("the background is WikiText-2's test text: the paper's PG19 is not here",)
    right = [{**o, "is_right": True} for o in ran.outcomes]
    score = asked.scores(right)["accuracy"]
    assert (score.value, score.chance, score.n) == (1.0, pytest.approx(1 / 6), 3)
    assert asked.differences(ran.outcomes, right)["accuracy"].n == 3


def test_a_right_answer_is_scored_right(folder, monkeypatch):
    from fabric.evaluate import decoding

    asked, subject = task("babilong_qa1"), subject_of(3000, _model())
    said = [list(f"The most recent location is {t}.".encode()) for t in ("hallway", "kitchen", "office")]
    monkeypatch.setattr(decoding, "continuations", lambda *_, **__: said)
    ran = asked.run(asked.prepare(asked.load(Asked(folder)), subject), subject)
    assert [o["is_right"] for o in ran.outcomes] == [True, False, True]
    assert ran.outcomes[0]["generated"] == "The most recent location is hallway."


def test_published_samples(folder):
    rows = [{"input": "Rain fell. Mary is in the garden.", "question": "Where is Mary? ", "target": "garden"}]
    (folder / "babilong").mkdir()
    path = folder / "babilong" / "qa1_1k.json"
    path.write_text(json.dumps(rows))
    asked = task("babilong_qa1")
    (item,) = asked.load(Asked(folder))
    text = bytes(asked.prepare([item], subject_of(3000)).prompts[0]).decode()
    assert text.endswith(
        "<context>\nRain fell. Mary is in the garden.\n</context>\n\nQuestion: Where is Mary?"
    )
    with pytest.raises(
        TaskDataError, match=r"1k.json\[0\]: a prompt of .*; set length lower than 1000, or use"
    ):
        asked.prepare([item], subject_of(512))
    assert item.remarks == ("published samples: their length is in GPT-2's tokens",)
    assert len(task("babilong_qa1:length=2000").load(Asked(folder))) == 3  # another length: composed
    path.write_text(json.dumps([{**rows[0], "target": "shed"}]))
    with pytest.raises(
        TaskDataError, match=r"qa1_1k.json\[0\]: the answer 'shed' is no label of qa1; allowed"
    ):
        asked.load(Asked(folder))
    path.write_text(json.dumps([{"input": "a", "target": "garden"}]))
    with pytest.raises(TaskDataError, match=r"qa1_1k.json\[0\]: no field 'question'"):
        asked.load(Asked(folder))
    assert [size_name(n) for n in (0, 1000, 128_000, 10**6, 10**7, 1500)] == [
        "0k",
        "1k",
        "128k",
        "1M",
        "10M",
        "1500",
    ]


# ---- what is refused


def test_files_that_are_no_text(folder, tmp_path):
    path = folder / "babi/en-10k/qa1_single-supporting-fact_test.txt"
    path.write_bytes(b"1 A \xff\n")
    with pytest.raises(TaskDataError, match="not UTF-8 at byte 4"):
        task("babilong_qa1").load(Asked(folder))
    path.write_text(STORY)
    for damage, says in ((b"\xff", "not UTF-8 at byte 0"), (b" = A = \n", "no sentences to hide facts in")):
        (folder / "wikitext-2/test.txt").write_bytes(damage)
        with pytest.raises(TaskDataError, match=rf"test.txt .*{says}"):
            task("babilong_qa1").load(Asked(folder))


def test_what_cannot_be_asked_is_said(folder, tmp_path):
    with pytest.raises(ValueError, match=r"babilong_qa1: length=300 leaves no context: 300 tokens"):
        task("babilong_qa1:length=300")
    with pytest.raises(ValueError, match="length"):
        task("babilong_qa1:length=-1")
    with pytest.raises(TaskDataError, match=r"tried: .*qa2_1k.json, .*qa2_\*_test.txt"):
        task("babilong_qa2").load(Asked(folder))
    with pytest.raises(
        TaskDataError, match=r"length=1500 is not published; the hub has 0k, 1k, .*name a folder"
    ):
        task("babilong_qa1:length=1500").load(Asked(None))
    asked = task("babilong_qa1")
    items = asked.load(Asked(folder))
    (longest,) = {len(p) for p in asked.prepare(items[:1], subject_of(3000)).prompts}
    assert asked.prepare(items[:1], subject_of(longest + 20)).n_context == [700]
    for length, max_seq_len, says in (
        (1000, longest + 19, r"set length=999 or less, or use a model with a longer context"),
        (1000, 512, r"set length=0, or use a model"),
        (0, 512, r"takes 512; use a model"),
    ):
        shorter = replace(asked, length=length)
        with pytest.raises(
            TaskDataError, match=rf"test.txt:3: a prompt of \d+ tokens and 20 new ones, .*{says}"
        ):
            shorter.prepare(shorter.load(Asked(folder)), subject_of(max_seq_len))
    asked = task("babilong_qa1:length=330")
    with pytest.raises(TaskDataError, match=r"test.txt:3: its facts are \d+ tokens, its context may have 30"):
        asked.prepare(asked.load(Asked(folder)), subject_of(3000))


@pytest.mark.skipif(REAL is None, reason="FABRIC_DATA names no folder of real data")
@pytest.mark.parametrize("qa", TEXTS)
def test_real_data(qa):
    from tokenizers import ByteLevelBPETokenizer

    from fabric.data.tokenizer import JsonTokenizer

    assert REAL is not None
    gpt2 = Path(REAL) / "tokenizer-gpt2"
    library = ByteLevelBPETokenizer(str(gpt2 / "vocab.json"), str(gpt2 / "merges.txt"))
    library.add_special_tokens(["<|endoftext|>"])
    tokenizer = JsonTokenizer(library.to_str(), eos="<|endoftext|>")
    subject = Subject(
        SimpleNamespace(
            tokenizer=tokenizer, prompt_ids=tokenizer.encode, config=SimpleNamespace(max_seq_len=2048)
        ),
        0,
    )
    asked = task(f"babilong_{qa}")
    everything = replace(asked, length=0).load(Asked(Path(REAL)))
    assert len(everything) == 1000
    items = asked.load(Asked(Path(REAL), limit=40))
    prepared = asked.prepare(items, subject)
    assert set(prepared.n_context) == {700}
    for item, prompt in zip(items, prepared.prompts, strict=True):
        text = tokenizer.decode(prompt)
        context = text[text.index("<context>") : text.index("</context>")]
        assert all(" " + fact in context for fact in item.facts)
        assert item.question not in context
        assert len(prompt) <= 1000  # the room that is kept for the rest is enough
