"""lm-evaluation-harness on our models: its own likelihoods, its own scores, any task it has a YAML file for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fabric
from fabric.evaluate.harness import generated, harness_model
from fabric.evaluate.likelihood import likelihoods
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task
from fabric.trained import find_trained
from models import ModelConfig, build, generate

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra eval)")

REAL = os.environ.get("FABRIC_DATA")
EIGHT = ("sst2", "cola", "rte", "cb", "boolq", "wic", "copa", "blimp")
ROWS = [
    {"text": f"It was {a} in the {b}, and", "choices": [" she left.", " nobody saw it.", " so"], "gold": i % 3}
    for i, (a, b) in enumerate((a, b) for a in ("dark", "cold", "late", "quiet", "warm") for b in
                               ("house", "yard", "road", "room", "hall", "inn", "barn", "port", "mill", "shop"))
]  # fmt: skip


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small Llama over bytes, as a Hugging Face folder."""
    import models.hf  # noqa: F401
    from models.hf import to_transformers

    where = tmp_path_factory.mktemp("model")
    body = {"vocab_size": 257, "d_model": 32, "n_layers": 2, "max_seq_len": 192, "init": {"std": 0.3}}
    parts = {"mixer": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2}, "ffn": {"kind": "swiglu", "d_ff": 48}}
    to_transformers(build(ModelConfig.model_validate({**body, **parts})).eval()).save_pretrained(where)
    byte_tokenizer().save_pretrained(where)
    return where


def byte_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)} | {"<end>": 256}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", bos_token="<end>")


@pytest.fixture(scope="module")
def subject(folder) -> Subject:
    return Subject.of(find_trained(folder))


@pytest.fixture(scope="module")
def theirs(folder):
    """The harness's own model of the same folder."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", batch_size=8, device="cpu")


def items_of(name: str, n: int):
    return task(name).load(Asked(Path(str(REAL)), n))


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="no FABRIC_DATA")
def test_our_likelihoods_are_its_own_on_real_tasks(subject, theirs):
    """Over more than 500 pairs of eight tasks; the same guesses."""
    n_pairs = 0
    for name in EIGHT:
        chosen = task(name)
        items = items_of(name, 32)
        prepared = chosen.prepare(items, subject)
        requests = list(prepared.texts.values())
        ours = likelihoods(subject.model, requests)
        asked = [(("", ""), list(r.context), list(r.continuation)) for r in requests]
        its = theirs._loglikelihood_tokens(asked, disable_tqdm=True)
        for a, (nats, is_greedy) in zip(ours, its, strict=True):
            assert a.nats == pytest.approx(nats, abs=1e-4)
            assert a.is_greedy == is_greedy
        n_pairs += len(requests)
        of = {key: nats for key, (nats, _) in zip(prepared.texts, its, strict=True)}
        lengths = {
            key: len(r.continuation) if chosen.score == "mean" else 1 for key, r in prepared.texts.items()
        }
        guesses = []
        for item in items:
            scores = [of[item.prompt, o] / lengths[item.prompt, o] for o in item.options]
            guesses.append(scores.index(max(scores)))
        outcomes = chosen.run(prepared, subject).outcomes
        assert [o["guess"] for o in outcomes] == guesses, name
    assert n_pairs >= 500


def requests_of(pairs):
    return [SimpleNamespace(args=pair) for pair in pairs]


def test_strings_are_cut_into_context_and_continuation_as_it_does(subject, theirs):
    long = "word " * 60
    pairs = [
        ("A cat", " sat."),
        ("A cat ", "sat."),
        ("", "A cat sat."),
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
    free = generate(subject.model, torch.tensor([subject.encode("A cat")]), 24, temperature=0)
    text = subject.trained.tokenizer.decode(free[0, 5:].tolist())
    stop = next(text[i : i + 2] for i in range(6, len(text) - 2) if text.isascii() or text[i].isascii())
    for options in ({"until": [stop], "max_gen_toks": 24}, {"until": [""], "max_gen_toks": 8}):
        (its,) = theirs.generate_until(
            requests_of([("A cat", {**options, "do_sample": False})]), disable_tqdm=True
        )
        assert generated(subject, "A cat", options) == its
    with pytest.raises(ValueError, match="generates 200 tokens, the model takes 192"):
        generated(subject, "A cat", {"max_gen_toks": 200})


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
    return tmp_path / "tasks"


@pytest.mark.slow
def test_its_tasks_give_its_own_scores(folder, theirs, yaml_file):
    found = {h.task: h for h in fabric.measure_with_harness([folder], [str(yaml_file)])}
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(yaml_file), include_defaults=False)
    expected = lm_eval.simple_evaluate(
        model=theirs, tasks=["local_choice", "local_text"], task_manager=manager, bootstrap_iters=0
    )["results"]
    for name, metrics in {
        "local_choice": ["acc,none"],
        "local_text": ["word_perplexity,none", "byte_perplexity,none", "bits_per_byte,none"],
    }.items():
        assert found[name].n_items == 50
        for metric in metrics:
            assert found[name].metrics[metric] == pytest.approx(expected[name][metric], rel=1e-6), metric
    assert found["local_choice"].standard_errors["acc,none"] > 0


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
    with pytest.raises(ValueError, match="cannot get the data of gone"):
        fabric.measure_with_harness([folder], [str(tmp_path / "empty" / "t.yaml")])


@pytest.mark.slow
def test_an_unknown_name_is_told_with_the_nearest(folder):
    with pytest.raises(ValueError, match="has no task 'hellaswga'; did you mean 'hellaswag'"):
        fabric.measure_with_harness([folder], ["hellaswga"])
