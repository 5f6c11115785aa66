"""`fabric export` and `fabric generate` between our trials and the field's formats."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from cli_kit import write_job

import fabric
from fabric.trained import load_trained

ARMS = {"llama": "LlamaForCausalLM", "own": "FabricForCausalLM"}
OWN = "{model.mixer: {kind: mla_simple, n_heads: 4, latent_dim: 16, window: 12}, model.norm_placement: sandwich}"


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """By arm, a trial's folder: one that transformers has a class for, and one that it lacks."""
    folder = tmp_path_factory.mktemp("formats")
    axis = f"search.axes=[{{arms: [{{name: llama}}, {{name: own, set: {OWN}}}]}}]"
    end = fabric.sweep(
        write_job(folder), overrides=[axis, "search.seeds=1"], out=folder / "runs", runner="inline"
    )
    rows = fabric.plan(folder / "job.yaml", overrides=[axis, "search.seeds=1"], out=folder / "runs").trials
    return {row.arm: end.root / "trials" / row.id for row in rows}


@pytest.fixture(scope="module", params=list(ARMS))
def exported(request, trials, tmp_path_factory):
    """A trial, its folder as exported, and its arm."""
    folder = fabric.export(trials[request.param], tmp_path_factory.mktemp("exported") / "model")
    return trials[request.param], folder, request.param


def test_every_trial_exports_and_transformers_writes_the_same_text(cli, exported):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import models.hf  # noqa: F401 (registers our class)

    trial, folder, arm = exported
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == ARMS[arm]
    assert {p.name for p in folder.iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    ids = tokenizer("the cat", return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=24, do_sample=False)
    theirs = tokenizer.decode(out[0], skip_special_tokens=True)
    options = ("--prompt", "the cat", "--tokens", 24, "--temperature", 0)
    assert cli("generate", trial, *options) == theirs + "\n"
    assert cli("generate", folder, *options) == theirs + "\n", "an exported folder is a target too"
    batch = tokenizer(
        ["the cat", "a mat and her dog"], return_tensors="pt", padding=True, padding_side="left"
    )
    out = model.generate(**batch, max_new_tokens=24, do_sample=False)
    assert tokenizer.decode(out[0], skip_special_tokens=True) == theirs


def test_an_exported_folder_exports_again_to_the_same_model(cli, exported, tmp_path):
    _, folder, arm = exported
    cli("export", folder, "--out", tmp_path / "again")
    again = tmp_path / "again"
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    one, other = (json.loads((f / "tokenizer.json").read_text()) for f in (again, folder))
    assert one["model"] == other["model"]
    assert one["added_tokens"] == other["added_tokens"]
    assert ARMS[arm] in (again / "README.md").read_text()


@pytest.mark.slow
def test_export_prints_the_folder_and_nothing_else(trials, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "DS_ACCELERATOR"}
    command = [sys.executable, "-m", "fabric.cli", "export", str(trials["own"]), "--out", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{tmp_path}/o\n"


def test_the_card_says_what_is_known_and_what_is_not(exported):
    trial, folder, arm = exported
    card = (folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "unknown", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["experiment-fabric", "causal-lm", "gqa" if arm == "llama" else "mla_simple"],
    }  # fmt: skip
    trained = load_trained(trial)
    for words in (
        f"# tiny / {trial.name}",
        f"arm: {arm}",
        f"class: `{ARMS[arm]}`",
        "data: files",
        "licence: not known here",
        "tokens: 4,096 in 16 steps of 8 texts",
        "seed: 0",
        "at most 64 tokens",
        "| unit |",
        "nats/token",
    ):
        assert words in body, words
    final = trained.trial.record.status().final
    assert f"| val_loss | {final['val_loss']:.6g} | nats/token |" in body
    assert "| test_loss |" in body
    assert "Not measured: recall_accuracy" in body
    assert ("import models.hf" in body) == (arm == "own")
    code = body.split("```python\n")[1].split("```")[0].replace("PATH", str(folder))
    exec(code, {})


def test_a_folder_that_is_no_whole_model_is_an_error(cli, exported, tmp_path):
    _, folder, _ = exported
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    cli("generate", tmp_path, code=2)
    assert f"error: {tmp_path} cannot be read: " in cli.err
    (tmp_path / "x.gguf").write_bytes(b"GGUF, it says")
    cli("export", tmp_path / "x.gguf", "--out", tmp_path / "o", code=2)
    assert f"error: {tmp_path}/x.gguf cannot be read: " in cli.err
    assert not (tmp_path / "o").exists()


ROWS = [
    {"text": "the cat sat on", "choices": [" a mat", " xylophones", " her home"], "gold": 0},
    {"text": "and her dog saw", "choices": [" the cat", " 99!", " run and"], "gold": 0},
    {"text": "a", "choices": [" mat.", " the dog run home and saw a mat", " zz"], "gold": 2},
]


def local_task(folder):
    """A multiple-choice task of lm-evaluation-harness over a local file."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return {
        "task": "local_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }


def log_likelihood(trained, text, continuation):
    """Of the continuation's tokens, and whether greedy decoding writes them; text and continuation encoded as one."""
    n_text = len(trained.tokenizer.encode(text))
    ids = torch.tensor([trained.tokenizer.encode(text + continuation)])
    with torch.inference_mode():
        logits = trained.model(ids).logits[0, n_text - 1 : -1].float()
    wanted = ids[0, n_text:]
    scores = logits.log_softmax(-1)[torch.arange(len(wanted)), wanted]
    return float(scores.sum()), bool((logits.argmax(-1) == wanted).all())


@pytest.mark.slow
def test_lm_evaluation_harness_reads_the_folder_and_finds_our_likelihoods(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra eval)")
    import models.hf  # noqa: F401 (registers our class)

    trial, folder, _ = exported
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=[local_task(tmp_path)],
        batch_size=2,
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
    )
    trained, best = load_trained(trial), 0
    for row, sample in zip(ROWS, found["samples"]["local_choice"], strict=True):
        ours = [log_likelihood(trained, row["text"], c) for c in row["choices"]]
        theirs = [(float(v), g) for ((v, g),) in sample["resps"]]
        assert [v for v, _ in theirs] == pytest.approx([v for v, _ in ours], abs=1e-4)
        assert [str(g) for _, g in theirs] == [str(g) for _, g in ours]
        best += max(range(3), key=lambda i: ours[i][0]) == row["gold"]
    assert found["results"]["local_choice"]["acc,none"] == pytest.approx(best / len(ROWS))
