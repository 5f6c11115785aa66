"""lm-evaluation-harness on our models: its own likelihoods, its own scores, any task it has a YAML file for."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from stories_kit import STORIES, stories, stories_tokenizer
from theirs_kit import REAL_EIGHT, agree_on, requests_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import fabric
from fabric.data.rows import Table
from fabric.evaluate.harness import generated, harness_model, harness_tasks
from fabric.evaluate.options import OptionTask
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task
from fabric.trained import find_trained
from models import ModelConfig, build

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra eval)")

REAL = os.environ.get("FABRIC_DATA")
STORIES_ARE_HERE = pytest.mark.skipif(
    not STORIES.is_dir(), reason="FABRIC_DATA names no folder with model-stories260K/"
)
INVENTED = Path(__file__).parent / "rows"
INVENTED_EIGHT = ("qqp", "qnli", "mnli", "mnli_mismatched", "wsc", "multirc", "record", "blimp")
ROWS = [
    {"text": f"It was {a} in the {b}, and", "choices": [" she left.", " nobody saw it.", " so"], "gold": i % 3}
    for i, (a, b) in enumerate((a, b) for a in ("dark", "cold", "late", "quiet", "warm") for b in
                               ("house", "yard", "road", "room", "hall", "inn", "barn", "port", "mill", "shop"))
]  # fmt: skip


# The questions of its cola and mrpc.
PROMPTED = {
    "cola": ("\nQuestion: Does this sentence make sense?\nAnswer:", ("sentence",), ("mcc",)),
    "mrpc": (
        "\nQuestion: Do both sentences mean the same thing?\nAnswer:",
        ("sentence1", "sentence2"),
        ("acc", "f1"),
    ),
}
CHOICES = " f", " s"  # an untrained model gives both answers


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["plain", "begun"])
def folder(request, tmp_path_factory) -> Path:
    """A small Llama over bytes, as a Hugging Face folder; "begun": its tokenizer puts <begin> before a text."""
    from models.hf import to_transformers

    where = tmp_path_factory.mktemp("model")
    body = {"vocab_size": 258, "d_model": 32, "n_layers": 2, "max_seq_len": 192, "init": {"std": 0.3}}
    parts = {"mixer": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2}, "ffn": {"kind": "swiglu", "d_ff": 48}}
    to_transformers(build(ModelConfig.model_validate({**body, **parts})).eval()).save_pretrained(where)
    byte_tokenizer(request.param == "begun").save_pretrained(where)
    return where


def byte_tokenizer(begins: bool) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(letters)} | {"<end>": 256, "<begin>": 257}
    core = Tokenizer(models.BPE(vocab, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if begins:
        core.post_processor = processors.TemplateProcessing("<begin> $A", None, [("<begin>", 257)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", bos_token="<begin>" if begins else "<end>"
    )


@pytest.fixture(scope="module")
def subject(folder) -> Subject:
    return Subject.of(find_trained(folder))


@pytest.fixture(scope="module")
def theirs(folder):
    return its_own(folder)


def its_own(folder: Path):
    """The harness's own model of the same folder."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", batch_size=8, device="cpu")


@pytest.fixture(scope="module")
def storyteller(tmp_path_factory) -> Path:
    """stories260K as a Hugging Face folder."""
    from models.hf import to_transformers

    where = tmp_path_factory.mktemp("stories")
    to_transformers(stories(STORIES / "stories260K.bin").eval()).save_pretrained(where)
    stories_tokenizer(STORIES / "tok512.bin").save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def invented(tmp_path_factory) -> Path:
    """Invented rows in the releases' form, BLiMP's among them."""
    where = tmp_path_factory.mktemp("rows") / "rows"
    shutil.copytree(INVENTED, where)
    (where / "blimp").mkdir()
    words = [w for row in ROWS for w in row["text"].split()]
    pairs = [
        {"sentence_good": " ".join(words[i : i + 6]), "sentence_bad": " ".join(words[i : i + 6][::-1]), "UID": "a"}
        for i in range(0, 290, 3)
    ]  # fmt: skip
    (where / "blimp" / "order.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return where


@pytest.mark.slow
@STORIES_ARE_HERE
def test_our_likelihoods_of_a_real_model_are_its_own_on_real_tasks(storyteller):
    ours = Subject.of(find_trained(storyteller))
    assert agree_on(REAL_EIGHT, Path(str(REAL)), 32, ours, its_own(storyteller)) >= 500


@pytest.mark.slow
def test_our_likelihoods_are_its_own_on_invented_rows(subject, theirs, invented):
    assert agree_on(INVENTED_EIGHT, invented, 100, subject, theirs) >= 500


def test_strings_are_cut_into_context_and_continuation_as_it_does(subject, theirs):
    long = "word " * 60
    pairs = [
        ("A cat", " sat."),
        ("A cat ", "sat."),
        ("", "A dog ran."),  # "A cat sat." it would take for the first, cut elsewhere
        ("Q?\n", "Yes"),
        (long, " end"),
        ("é", "ß"),
    ]
    ours = harness_model(subject).loglikelihood(requests_of(pairs), disable_tqdm=True)
    its = theirs.loglikelihood(requests_of(pairs), disable_tqdm=True)
    assert [n for n, _ in ours] == pytest.approx([n for n, _ in its], abs=1e-4)
    assert [g for _, g in ours] == [g for _, g in its]


def test_a_text_longer_than_the_model_is_rolled_over_as_it_does(subject, theirs):
    texts = [("A cat sat on a mat. " * 30,), ("short",)]
    ours = harness_model(subject).loglikelihood_rolling(requests_of(texts), disable_tqdm=True)
    its = theirs.loglikelihood_rolling(requests_of(texts), disable_tqdm=True)
    assert ours == pytest.approx(its, rel=1e-6)


def test_text_is_generated_until_a_string_as_it_does(subject, theirs):
    contexts = ["A cat", "A dog sat on a mat; " * 15, "A cat sat"]
    contexts += [""] if subject.encode("a") != subject.trained.tokenizer.encode("a") else []  # else it fails
    free = {"until": [], "max_gen_toks": 24, "do_sample": False}
    (text, *_) = generated(subject, [(contexts[0], free)])
    stop = next(text[i : i + 2] for i in range(6, len(text) - 2) if text[i : i + 2].isascii())
    assert "\ufffd" not in stop
    requests = [(c, o) for c in contexts for o in (free, {**free, "until": stop}, {"max_new_tokens": 8})]
    requests.append((contexts[0], {**free, "until": [""]}))  # it ends at once
    found = harness_model(subject).generate_until(requests_of(requests), disable_tqdm=True)
    assert found == [theirs.generate_until(requests_of([r]), disable_tqdm=True)[0] for r in requests]
    assert 6 <= len(found[1]) < len(found[0])
    assert stop not in found[1]


def test_texts_are_drawn_by_the_seed(subject):
    requests = [("A cat", {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 16})] * 3
    torch.manual_seed(1)
    first = generated(subject, requests)
    assert len(set(first)) == 3, "each request its own"
    torch.manual_seed(1)
    assert generated(subject, requests) == first
    torch.manual_seed(2)
    assert generated(subject, requests) != first
    assert (
        generated(subject, [("A cat", {"temperature": 0.0, "max_gen_toks": 4})] * 2)[0]
        == (generated(subject, [("A cat", {"do_sample": False, "temperature": 0.7, "max_gen_toks": 4})])[0])
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_gen_toks": 200}, "generates 200 tokens, the model takes 192"),
        ({"num_beams": 4}, "generates with num_beams=4; ours takes until"),
        ({"do_sample": True, "temperature": 1.0, "top_k": 5}, "generates with top_k=5"),
        ({"do_sample": True}, "do_sample=True without a temperature"),
    ],
)
def test_what_cannot_be_generated_is_told(subject, options, said):
    with pytest.raises(ValueError, match=said):
        generated(subject, [("A cat", {"max_gen_toks": 4, **options})])
    if "top_k" in options:
        assert generated(subject, [("A cat", {"do_sample": False, "top_k": 5, "max_gen_toks": 4})])


@pytest.fixture
def yaml_file(tmp_path) -> Path:
    """Two tasks of its own form: a choice, and a text to be predicted."""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    body = {
        "task": "local_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    rolled = {k: v for k, v in body.items() if not k.startswith("doc_to_choice")} | {
        "task": "local_text",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "choice.yaml").write_text(yaml.safe_dump(body))
    (tmp_path / "tasks" / "text.yaml").write_text(yaml.safe_dump(rolled))
    for name, (question, fields, metrics) in PROMPTED.items():
        rows = [
            {**{f: row["text"][n:] for n, f in enumerate(fields)}, "label": row["gold"] % 2} for row in ROWS
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        asked = "\n".join(f"{{{{{f}}}}}" for f in fields) + question
        files = {"test": str(tmp_path / f"{name}.jsonl")}
        changed = {
            "task": f"local_{name}",
            "dataset_kwargs": {"data_files": files},
            "doc_to_text": asked,
            "doc_to_choice": list(CHOICES),
            "doc_to_target": "label",
            "metric_list": [{"metric": m} for m in metrics],
        }
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({**body, **changed}))
    return tmp_path / "tasks"


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["plain"], indirect=True)
def test_its_tasks_give_its_own_scores_and_ours_give_the_same(folder, subject, theirs, yaml_file):
    """Text metrics, and CoLA's and MRPC's of prompts in its form, on 50 rows: by it on its own model, by it on ours,
    and by our own tasks."""
    found = {h.task: h for h in fabric.measure_with_harness([folder], [str(yaml_file)])}
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(yaml_file), include_defaults=False)
    expected = lm_eval.simple_evaluate(
        model=theirs, tasks=sorted(found), task_manager=manager, bootstrap_iters=0
    )["results"]
    metrics = {
        "local_choice": ["acc"],
        "local_text": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
        "local_cola": ["mcc"],
        "local_mrpc": ["acc", "f1"],
    }
    assert set(metrics) == set(found)
    for name, its in metrics.items():
        assert found[name].n_items == 50
        for metric in its:
            assert found[name].metrics[f"{metric},none"] == pytest.approx(
                expected[name][f"{metric},none"], rel=1e-6
            ), metric
    assert found["local_choice"].standard_errors["acc,none"] > 0
    chance, low, high = found["local_choice"].chance
    assert chance == pytest.approx(1 / 3)
    assert (low, high) == (10 / 50, 23 / 50)  # binomial, 2.5 % on either side
    assert found["local_choice"].is_chance("acc,none") == (
        low <= found["local_choice"].metrics["acc,none"] <= high
    )
    assert found["local_text"].chance is None
    assert not found["local_cola"].is_chance("mcc,none")

    ours = our_text_scores(subject, yaml_file.parent)
    its = expected["local_text"]
    for metric in ("word_perplexity", "bits_per_byte"):
        assert ours[metric].value == pytest.approx(its[f"{metric},none"], rel=1e-6)
    for name in PROMPTED:
        chosen = our_prompted(name, yaml_file.parent)
        items = chosen.load(Asked(yaml_file.parent))
        outcomes = chosen.run(chosen.prepare(items, subject), subject).outcomes
        assert len({o["guess"] for o in outcomes}) == 2, "both answers are given"
        for metric, score in chosen.scores(outcomes).items():
            its = {"matthews": "mcc", "accuracy": "acc"}.get(metric, metric)
            if f"{its},none" in expected[f"local_{name}"]:
                assert score.value == pytest.approx(expected[f"local_{name}"][f"{its},none"], abs=1e-6), (
                    metric
                )


def our_text_scores(subject: Subject, folder: Path):
    """Every row a text of its own, in windows of the model's length."""
    outcomes = []
    for i, row in enumerate(ROWS):
        (folder / f"{i}.txt").write_text(row["text"])
        chosen = task(f"text:path={folder / f'{i}.txt'},window={subject.max_seq_len}")
        outcomes += chosen.run(chosen.prepare(chosen.load(Asked()), subject), subject).outcomes
    return task("text").scores(outcomes)


def our_prompted(name: str, folder: Path) -> OptionTask:
    """The same prompts as a task of ours."""
    question, fields, metrics = PROMPTED[name]
    return OptionTask(
        name=name,
        about="",
        rows=Table((f"{name}.jsonl",)),
        prompt=lambda row: "\n".join(row.text(f) for f in fields) + question,
        options=lambda row: CHOICES,
        answer=lambda row: row.one_of("label", {"0": 0, "1": 1}),
        score="sum",
        metrics=("matthews",) if metrics == ("mcc",) else ("accuracy", "f1"),
    )


@pytest.mark.parametrize("folder", ["plain"], indirect=True)
def test_mistakes_are_told(folder, tmp_path):
    with pytest.raises(ValueError, match="nothing/here is not there"):
        fabric.measure_with_harness([folder], ["nothing/here"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no task of lm-evaluation-harness"):
        fabric.measure_with_harness([folder], [str(tmp_path / "empty")])
    (tmp_path / "empty" / "t.yaml").write_text(
        yaml.safe_dump(
            {
                "task": "gone",
                "dataset_path": "json",
                "test_split": "test",
                "dataset_kwargs": {"data_files": {"test": str(tmp_path / "no.jsonl")}},
                "output_type": "multiple_choice",
                "doc_to_text": "{{t}}",
                "doc_to_choice": ["a", "b"],
                "doc_to_target": "{{g}}",
                "metric_list": [{"metric": "acc"}],
            }
        )
    )
    with pytest.raises(ValueError, match="cannot get or read the data of gone"):
        fabric.measure_with_harness([folder], [str(tmp_path / "empty" / "t.yaml")])


@pytest.mark.parametrize("folder", ["plain"], indirect=True)
@pytest.mark.parametrize(
    ("rows", "question", "said"),
    [
        ('{"text": "a", "label": 1}\n{"text": ', "{{text}}", "cannot get or read the data of local_wrong"),
        (
            '{"text": "a", "label": 1}\n',
            "{{txt.strip()}}",
            "cannot get or read the data of local_wrong: .*txt",
        ),
    ],
    ids=["not JSON", "no such field"],
)
def test_data_that_is_not_as_it_should_be_is_told(folder, tmp_path, rows, question, said):
    (tmp_path / "rows.jsonl").write_text(rows)
    body = {
        "task": "local_wrong",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": question,
        "doc_to_choice": ["no", "yes"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(body))
    with pytest.raises(ValueError, match=said):
        fabric.measure_with_harness([folder], [str(tmp_path / "wrong.yaml")])


@pytest.mark.parametrize("folder", ["plain"], indirect=True)
def test_a_package_that_a_task_needs_is_named(folder, tmp_path):
    (tmp_path / "needy.py").write_text("import no_such_package\ndef f(doc):\n    return ''\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 1}\n')
    body = f"""
task: local_needy
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: !function needy.f
doc_to_choice: ["no", "yes"]
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
    (tmp_path / "needy.yaml").write_text(body)
    with pytest.raises(ValueError, match=r"local_needy: .*no_such_package"):
        fabric.measure_with_harness([folder], [str(tmp_path / "needy.yaml")])


@pytest.mark.slow
def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(ValueError, match="has no task 'hellaswga'; did you mean 'hellaswag'"):
        harness_tasks(["hellaswga"])


def test_without_the_harness_what_to_install_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as Python has it for a module that cannot be imported
    with pytest.raises(ValueError, match=r"not installed: pip install 'experiment-fabric\[eval\]'"):
        harness_tasks(["piqa"])
