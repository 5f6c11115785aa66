"""Generation: the same text whatever the batch, stops in the decoded text, cuts, settings."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import models
from fabric.data.rows import Table, TaskDataError
from fabric.data.tokenizer import ByteTokenizer
from fabric.evaluate.answers import exact, f1
from fabric.evaluate.decoding import Drawing, continuations
from fabric.evaluate.generation import GenerationTask, Metric, cut, has_ended, text_of
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked

PROMPTS = [[5, 6, 7, *[(13 * i + j) % 250 for j in range(3 + 5 * i % 47)]] for i in range(40)]


def never(ids) -> bool:
    return False


def after_some(ids) -> bool:
    return ids[-1] % 3 == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("ended", [never, after_some])
def test_texts_do_not_depend_on_the_batch(model, temperature, ended):
    how = Drawing(temperature, 0.9 if temperature else None, seed=3)
    found = [continuations(model.eval(), PROMPTS, 12, ended, how, rows=r) for r in (1, 7, 32)]
    assert found[0] == found[1] == found[2]
    assert len({tuple(f) for f in found[0]}) > 10


@pytest.mark.parametrize("window", [None, 8])
def test_greedy_texts_are_those_of_the_whole_text_without_a_cache(body, window):
    body["mixer"] = {**body["mixer"], **({"window": window} if window else {})}
    torch.manual_seed(1)
    model = models.build(models.ModelConfig.model_validate(body)).eval()
    for prompt, new in zip(PROMPTS[:9], continuations(model, PROMPTS[:9], 6, never), strict=True):
        for n, token in enumerate(new):
            with torch.no_grad():
                hidden_BTD = model.hidden(torch.tensor([[*prompt, *new[:n]]]))
            assert token == int((hidden_BTD[0, -1] @ model.lm_head_weight.T).argmax())


def test_no_room_is_said(model):
    with pytest.raises(ValueError, match="takes 128 together"):
        continuations(model, [[1] * 120], 9, never)
    with pytest.raises(ValueError, match="a prompt of 0 tokens"):
        continuations(model, [[]], 1, never)


def test_a_stop_inside_a_token_and_across_two():
    tokenizer = SimpleNamespace(
        eos_id=9, decode=lambda ids: "".join({1: "a", 2: ")\nb", 3: "Q", 4: ":"}[i] for i in ids)
    )
    assert has_ended(tokenizer, ("\n",), [1, 2])
    assert text_of(tokenizer, [1, 2], ("\n",)) == "a)"
    assert not has_ended(tokenizer, ("Q:",), [1, 3])
    assert has_ended(tokenizer, ("Q:",), [1, 3, 4])
    assert text_of(tokenizer, [1, 3, 4], ("Q:", "\n")) == "a"
    assert has_ended(tokenizer, (), [1, 9])
    assert text_of(tokenizer, [1, 9], ()) == "a"


def test_cuts():
    assert cut(range(10), 10, "left") == list(range(10))
    assert cut(range(10), 5, "left") == [5, 6, 7, 8, 9]
    assert cut(range(10), 5, "middle") == [0, 1, 8, 9]


def declared(**changes) -> GenerationTask:
    return GenerationTask(
        **{
            "name": "echo",
            "about": "what was said",
            "rows": Table(("echo.jsonl",)),
            "examples": Table(("train.jsonl",)),
            "prompt": lambda row: f"Say {row.text('word')}:",
            "solved": lambda row: f"Say {row.text('word')}: {row.text('word')}",
            "references": lambda row: [row.text("word")],
            "filters": {"text": str.strip},
            "metrics": {"f1": Metric("text", f1), "exact": Metric("text", exact, is_share=True)},
            "max_new_tokens": 8,
            **changes,
        }
    )


@pytest.fixture
def folder(tmp_path):
    for name, words in (("echo", ["cat", "long " * 40, "dog"]), ("train", ["one", "two", "three"])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"word": w}) + "\n" for w in words))
    return tmp_path


@pytest.fixture
def subject(model) -> Subject:
    trained = SimpleNamespace(
        model=model.eval(), config=model.config, tokenizer=ByteTokenizer(), prompt_ids=ByteTokenizer().encode
    )
    return Subject(trained, 256)


def test_a_run_keeps_texts_and_scores(folder, subject):
    task = declared()
    ran = task.run(task.prepare(task.load(Asked(folder)), subject), subject)
    assert ran.remarks == ("1 prompts lost their beginning: the model takes no more",)
    assert json.loads(json.dumps(ran.outcomes)) == ran.outcomes
    assert [o["references"] for o in ran.outcomes] == [["cat"], ["long " * 40], ["dog"]]
    assert all(o["extracted"]["text"] == o["generated"].strip() for o in ran.outcomes)
    assert task.scores(ran.outcomes)["exact"].value == sum(o["scores"]["exact"] for o in ran.outcomes) / 3
    right = task.outcome(" The cat. ", ["cat"])
    assert right["scores"] == {"f1": 1.0, "exact": 1.0}


def test_examples_are_the_same_for_all_and_go_by_the_seed(folder):
    task = declared().with_settings({"shots": "2"})
    prompts = [i.prompt for i in task.load(Asked(folder, seed=1))]
    assert prompts[0].endswith("\n\nSay cat:")
    assert prompts[0].count("Say") == 3
    assert prompts[2] == prompts[0].replace("cat", "dog")
    assert len({task.load(Asked(folder, seed=s))[0].prompt for s in range(20)}) == 6
    with pytest.raises(TaskDataError, match="3 training rows, 4 examples"):
        declared(shots=4).load(Asked(folder))


def test_what_cannot_be_asked_is_said(folder, subject):
    for settings, says in (
        ({"top_p": 0.5}, "nothing at temperature 0"),
        ({"too_long": "right"}, "too_long"),
        ({"temperature": -1}, "temperature"),
    ):
        with pytest.raises(ValueError, match=says):
            declared().with_settings(settings)
    task = declared(too_long="error")
    with pytest.raises(
        TaskDataError, match=r"echo.jsonl:2: a prompt of \d+ tokens where there is room for 120"
    ):
        task.prepare(task.load(Asked(folder)), subject)
    with pytest.raises(TaskDataError, match="generates 127 tokens"):
        declared(max_new_tokens=127).prepare(task.load(Asked(folder)), subject)
