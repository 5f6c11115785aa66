"""`fabric export` and `fabric generate` between our trials and the field's formats."""

from __future__ import annotations

import json

import pytest
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
