"""GSM8K, SQuAD and DROP: prompts, references, filters; the vectors of lm-evaluation-harness's regular expressions."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from fabric.data.rows import TaskDataError
from fabric.data.tokenizer import ByteTokenizer
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task
from models import ModelConfig, build

REAL = os.environ.get("FABRIC_DATA")
INVENTED = Path(__file__).parent / "rows"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "gsm8k").mkdir()
    for name, n in (("test", 2), ("train", 9)):
        rows = [
            {"question": f"What is {i} + 1?", "answer": f"It is <<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"}
            for i in range(n)
        ]
        (tmp_path / "gsm8k" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "strict", "is_right"),
    [
        ("The answer is 18", "1", False),  # its pattern wants one more character
        ("The answer is 18.", "18", True),
        ("The answer is 18. So", "18.", True),
        ("The answer is $18.", "[invalid]", False),
        ("The answer is 1,8.", "1,8", True),
    ],
)
def test_strict_vectors_of_gsm8k_cot(text, strict, is_right):
    pytest.importorskip("lm_eval")
    found = task("gsm8k_cot").outcome(text, ["18"])
    assert found["extracted"]["strict_match"] == strict
    assert found["scores"]["strict_match"] == is_right


@pytest.mark.parametrize(
    ("text", "number"),
    [("$1,234.50.", "1234.50"), ("so 5 eggs", "5"), ("first 12, then -7", "-7"), ("none", None)],
)
def test_flexible_vectors(text, number):
    pytest.importorskip("lm_eval")
    found = task("gsm8k").outcome(text, [f"#### {number or 3}"])
    assert found["scores"] == {"strict_match": 0, "flexible_extract": float(number is not None)}


def test_gsm8k_prompts(folder):
    pytest.importorskip("lm_eval")
    item = task("gsm8k").load(Asked(folder, seed=2))[1]
    assert item.prompt.endswith("\n\nQuestion: What is 1 + 1?\nAnswer:")
    assert len(re.findall(r"Answer: It is .*\n#### \d\n\n", item.prompt)) == 5
    assert task("gsm8k").outcome("#### 2", item.references)["scores"]["strict_match"] == 1
    item = task("gsm8k_cot").load(Asked(folder))[0]
    assert item.references == ("1",)
    assert re.findall(r"The answer is (\d+)\.\n\n", item.prompt) == [
        "6",
        "5",
        "39",
        "8",
        "9",
        "29",
        "33",
        "8",
    ]
    assert item.prompt.endswith("\n\nQ: What is 0 + 1?\nA:")


def test_without_lm_eval_the_package_is_named(folder, monkeypatch):
    import sys

    from fabric.evaluate.tasks import gsm8k

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    gsm8k.definition.cache_clear()
    with pytest.raises(ValueError, match=r"experiment-fabric\[eval\]"):
        task("gsm8k").load(Asked(folder))


def test_squad(tmp_path):
    (tmp_path / "squad").mkdir()
    qas = [
        {"id": "1", "question": " Where? ", "answers": [{"text": "Turin", "answer_start": 13}] * 2},
    ]
    data = [{"title": "Rain", "paragraphs": [{"context": "Rain fell on Turin.", "qas": qas}]}]
    (tmp_path / "squad" / "dev-v1.1.json").write_text(json.dumps({"data": data}))
    (item,) = task("squad").load(Asked(tmp_path))
    assert item.prompt == "Title: Rain\nContext: Rain fell on Turin.\nQuestion: Where?\nAnswer:"
    assert item.references == ("Turin",)
    assert task("squad").outcome(" the Turin. ", item.references)["scores"] == {"f1": 1.0, "exact": 1.0}
    with pytest.raises(TaskDataError, match=r"dev-v1.1.json"):
        task("squad").load(Asked(tmp_path / "nowhere"))


def test_drop():
    items = task("drop").load(Asked(INVENTED))
    assert len(items) == 21
    assert items[0].prompt.startswith("Passage: In the first quarter, Harbour scored")
    assert items[0].prompt.endswith("\nQuestion: How many field goals did Ames kick?\nAnswer:")
    assert items[2].references == (["Ames", "Boyle"],)


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A tiny model over bytes."""
    body = {"vocab_size": 257, "d_model": 32, "n_layers": 2, "max_seq_len": 280, "init": {"std": 0.3}}
    parts = {"mixer": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2}, "ffn": {"kind": "swiglu", "d_ff": 48}}
    model, tokenizer = build(ModelConfig.model_validate({**body, **parts})).eval(), ByteTokenizer()
    trained = SimpleNamespace(
        model=model, config=model.config, tokenizer=tokenizer, hf_tokenizer=None, prompt_ids=tokenizer.encode
    )
    return Subject.of(trained)


@pytest.mark.parametrize("name", ["squad", "squad_v2", "drop", "ms_marco"])
def test_invented_rows_are_asked_to_the_end(name, subject):
    """Outcomes are plain JSON, and every metric is told of them."""
    if name == "ms_marco":
        pytest.importorskip("rouge_score")
        pytest.importorskip("sacrebleu")
    chosen = task(f"{name}:max_new_tokens=6")
    items = chosen.load(Asked(INVENTED))
    ran = chosen.run(chosen.prepare(items, subject), subject)
    assert len(ran.outcomes) == len(items) >= 20
    assert json.loads(json.dumps(ran.outcomes)) == ran.outcomes
    assert list(chosen.scores(ran.outcomes)) == list(chosen.measures)
    right = [chosen.outcome(_said(i.references[0]), i.references) for i in items]
    shares = {n: s.value for n, s in chosen.scores(right).items() if n != "bleu"}
    assert shares == dict.fromkeys(shares, 1.0), "every reference is right by its own measure"


def _said(reference):
    """A reference as a model would write it."""
    return ", ".join(reference) if isinstance(reference, list) else reference


@pytest.mark.skipif(REAL is None, reason="FABRIC_DATA names no folder of real data")
def test_real_data():
    pytest.importorskip("lm_eval")
    assert REAL is not None
    items = task("gsm8k").load(Asked(Path(REAL)))
    assert len(items) == 1319
    assert len(task("squad").load(Asked(Path(REAL)))) == 10570
    # Every reference is right by its own measure.
    assert all(task("gsm8k").outcome(i.references[0], i.references)["scores"]["strict_match"] for i in items)
