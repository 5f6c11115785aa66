"""LongBench v2: the official prompts, cuts and parser; likelihoods of letters; what is refused. All rows are invented:
the published ones were never at hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import models
from fabric.data.rows import Row, TaskDataError
from fabric.data.tokenizer import ByteTokenizer
from fabric.evaluate.measures import Among, Share
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task
from fabric.evaluate.tasks.longbench_v2 import LEAD, parsed, prompt

INVENTED = Path(__file__).parent / "rows"
ROWS = json.loads((INVENTED / "longbench_v2" / "data.json").read_text())
ROW = {
    "_id": "1",
    "domain": "Single-Document QA",
    "sub_domain": "Literary",
    "difficulty": "easy",
    "length": "short",
    "question": " Who ran? ",
    "choice_A": "Ann\n",
    "choice_B": "Bo",
    "choice_C": "Cy",
    "choice_D": "Di",
    "answer": "B",
    "context": "\nBo ran.\n",
}


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    body = {
        "vocab_size": 257,
        "d_model": 16,
        "n_layers": 1,
        "max_seq_len": 512,
        "mixer": {"kind": "gqa", "n_heads": 2, "n_kv_heads": 1},
        "ffn": {"kind": "swiglu", "d_ff": 16},
        "init": {"std": 0.2},
    }
    return subject_of(models.build(models.ModelConfig.model_validate(body)).eval(), 512)


def subject_of(model, max_seq_len: int, tokenizer=None) -> Subject:
    tokenizer = tokenizer or ByteTokenizer()
    config = SimpleNamespace(max_seq_len=max_seq_len)
    trained = SimpleNamespace(model=model, config=config, tokenizer=tokenizer, prompt_ids=tokenizer.encode)
    return Subject(trained, 256)


def test_the_official_prompts():
    asked = (
        "What is the correct answer to this question: Who ran?\nChoices:\n(A) Ann\n(B) Bo\n(C) Cy\n(D) Di\n\n"
    )
    form = 'Format your response as follows: "The correct answer is (insert answer here)".'
    assert prompt(Row(ROW, "here"), context=True) == (
        "Please read the following text and answer the question below.\n\n<text>\nBo ran.\n</text>\n\n"
        + asked
        + form
    )
    without = prompt(Row(ROW, "here"), context=False)
    assert without == asked + "What is the single, most likely answer choice? " + form


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("**The correct answer is (B)**", "B"),
        ("The correct answer is C.", "C"),
        ("Answer: D", None),
        ("the correct answer is (A)", None),
        (
            "The correct answer is D, no: The correct answer is (A)",
            "A",
        ),  # brackets first, wherever they stand
        ("The correct answer is (E)", None),
        ("", None),
    ],
)
def test_parser_vectors(text, letter):
    assert parsed(text) == letter


def test_a_run(subject):
    asked = task("longbench_v2")
    items = asked.load(Asked(INVENTED))
    assert len(items) == 24
    ran = asked.run(asked.prepare(items, subject), subject)
    assert json.loads(json.dumps(ran.outcomes)) == ran.outcomes
    assert ["ABCD"[o["answer"]] for o in ran.outcomes] == [r["answer"] for r in ROWS]
    n_long = sum(len(i.prompt) > 512 - len(LEAD) for i in items)
    assert ran.remarks == (
        f"{n_long} prompts lost their middle: the model takes no more",
        "what is known without the texts: longbench_v2:context=false",
    )
    few = asked.run(asked.prepare(items[:3], subject), subject, rows=1)
    for a, b in zip(few.outcomes, ran.outcomes, strict=False):
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-4)


def test_metrics_overall_and_of_groups(subject):
    asked = task("longbench_v2")
    ran = asked.run(asked.prepare(asked.load(Asked(INVENTED)), subject), subject)
    right = [{**o, "guess": o["answer"] if o["length"] != "long" else -1} for o in ran.outcomes]
    scores = asked.scores(right)
    assert list(scores) == ["accuracy", "easy", "hard", "short", "medium", "long"]
    assert [s.n for s in scores.values()] == [24, 12, 12, 8, 8, 8]
    assert [s.value for s in scores.values()] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1, 1, 0])
    assert {s.chance for s in scores.values()} == {0.25}
    found = asked.differences(ran.outcomes, right)
    assert [d.n for d in found.values()] == [24, 12, 12, 8, 8, 8]
    assert found["long"].value <= 0
    short = [o for o in right if o["length"] == "short" and o["difficulty"] == "easy"]
    assert list(asked.scores(short)) == ["accuracy", "easy", "short"]
    assert list(asked.differences(short, short)) == ["accuracy", "easy", "short"]


def test_a_metric_among_some():
    among = Among(Share(lambda o: o["right"], better="lower"), lambda o: o["of"])
    outcomes = [{"right": True, "of": True}, {"right": False, "of": True}, {"right": True, "of": False}]
    assert (among.score(outcomes).value, among.score(outcomes).n, among.better) == (0.5, 2, "lower")
    other = [{**o, "right": True} for o in outcomes]
    assert (among.difference(outcomes, other).value, among.difference(outcomes, other).n) == (0.5, 2)


def test_the_letter_is_what_is_scored(subject):
    """The likeliest letter is that of the model's own next-token distribution after the prompt and the lead."""
    asked = task("longbench_v2:context=false")
    items = asked.load(Asked(INVENTED, limit=4))
    ran = asked.run(asked.prepare(items, subject), subject)
    assert ran.remarks == ()
    for item, outcome in zip(items, ran.outcomes, strict=True):
        ids = torch.tensor([list((item.prompt + LEAD).encode())])
        assert ids.shape[1] <= 512
        with torch.no_grad():
            logits_V = subject.model.hidden(ids)[0, -1] @ subject.model.lm_head_weight.T
        expected = logits_V.log_softmax(-1)[list(b"ABCD")]
        assert outcome["scores"] == pytest.approx(expected.tolist(), abs=1e-4)
        assert outcome["guess"] == int(expected.argmax())


def test_a_long_prompt_keeps_its_two_halves(tmp_path):
    (tmp_path / "longbench_v2").mkdir()
    row = {**ROW, "context": "".join(f"{n:05d} " for n in range(500))}
    (tmp_path / "longbench_v2" / "data.json").write_text(json.dumps([row]))
    asked = task("longbench_v2")
    (item,) = items = asked.load(Asked(tmp_path))
    prepared = asked.prepare(items, subject_of(None, 600))
    assert prepared.is_cut == [True]
    half = (600 + 1 - len(LEAD) - 1) // 2
    shown = {bytes(r.context).decode() for r in prepared.requests}
    assert shown == {item.prompt[:half] + item.prompt[-half:] + LEAD}
    assert [bytes(r.continuation) for r in prepared.requests] == [b"A", b"B", b"C", b"D"]
    assert all(len(r.context) + len(r.continuation) - 1 <= 600 for r in prepared.requests)
    whole = asked.prepare(items, subject_of(None, 5000))
    assert whole.is_cut == [False]
    assert bytes(whole.requests[0].context).decode() == item.prompt + LEAD


def test_a_tokenizer_that_joins_the_bracket_to_the_letter():
    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for c in text:
            if ids and ids[-1] == ord("(") and c in "ABCD":
                ids[-1] = 200 + ord(c)
            else:
                ids.append(ord(c))
        return ids

    asked = task("longbench_v2")
    items = asked.load(Asked(INVENTED, limit=1))
    prepared = asked.prepare(items, subject_of(None, 5000, SimpleNamespace(encode=encode)))
    assert [r.continuation for r in prepared.requests] == [(200 + ord(c),) for c in "ABCD"]
    assert bytes(prepared.requests[0].context[-3:]) == b"is "


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"answer": "E"},
            r"data.json\[0\]: answer = 'E' is no label of this task; allowed: 'A', 'B', 'C', 'D'",
        ),
        ({"difficulty": "fair"}, r"difficulty = 'fair' .* allowed: 'easy', 'hard'"),
        ({"length": "tiny"}, r"length = 'tiny' .* allowed: 'short', 'medium', 'long'"),
        ({"choice_C": " "}, "choice_C is empty; every question has a text and four choices"),
        ({"context": 3}, "context = 3 is no text"),
    ],
)
def test_rows_that_are_not_as_they_should_be(tmp_path, change, says):
    (tmp_path / "longbench_v2").mkdir()
    path = tmp_path / "longbench_v2" / "data.json"
    path.write_text(json.dumps([{**ROW, **change}]))
    with pytest.raises(TaskDataError, match=says):
        task("longbench_v2").load(Asked(tmp_path))
    path.write_text(json.dumps([{k: v for k, v in ROW.items() if k != "choice_D"}]))
    with pytest.raises(TaskDataError, match=r"data.json\[0\]: no field 'choice_D'"):
        task("longbench_v2").load(Asked(tmp_path))


def test_what_cannot_be_asked_is_said(tmp_path):
    with pytest.raises(TaskDataError, match=r"tried: .*longbench_v2/data.json"):
        task("longbench_v2").load(Asked(tmp_path))
    with pytest.raises(ValueError, match="context"):
        task("longbench_v2:context=some")
    asked = task("longbench_v2")
    with pytest.raises(TaskDataError, match=r"needs 27 tokens besides its prompt, the model takes 24"):
        asked.prepare(asked.load(Asked(INVENTED)), subject_of(None, 24))
