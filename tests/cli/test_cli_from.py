"""`model.from`: training starts from weights in any of the field's formats, read once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_kit import JOB, write_job

import fabric
from fabric.job.document import JobError
from fabric.planning.trial import TrialSpec
from fabric.runtime.worker import perform
from fabric.train.start import kept_config, weights_file
from fabric.trained import load_trained
from models import ModelConfig, build
from models.decoder import CausalLM

MODEL = JOB.split("  model:\n")[1].split("  data:")[0]
# Steps so small that no fp32 weight changes: what comes out is what went in.
STILL = ("train.optimizer.lr=1e-30", "search.seeds=2", "search.axes=[{arms: [{name: a}]}]")
OURS = ModelConfig.model_validate(
    {
        "vocab_size": 260,
        "d_model": 32,
        "n_layers": 2,
        "max_seq_len": 64,
        "mixer": {"kind": "mla_simple", "n_heads": 4, "latent_dim": 16, "window": 12},
        "ffn": {"kind": "gelu", "d_ff": 48},
        "norm_placement": "sandwich",
    }
)
LLAMA = OURS.replace(
    mixer={"kind": "gqa", "n_heads": 4, "n_kv_heads": 2, "rope_theta": 5000.0},
    ffn={"kind": "swiglu", "d_ff": 48},
    norm_placement="pre",
)


def write_hf(folder: Path, config: ModelConfig, seed: int = 3, **how: object) -> CausalLM:
    """A Hugging Face folder with a model's weights; returns the model."""
    from models.hf import to_transformers

    model = build(config, seed=seed)
    to_transformers(model).save_pretrained(folder, **how)
    return model


def job_from(folder: Path, source: object, extra: str = "") -> Path:
    return write_job(folder, JOB.replace(MODEL, f"    from: {source}\n{extra}"))


def equal_weights(one: CausalLM, other: CausalLM) -> bool:
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return mine.keys() == theirs.keys() and all(torch.equal(p, theirs[n]) for n, p in mine.items())


def specs(root: Path) -> list[TrialSpec]:
    return [TrialSpec.model_validate_json(p.read_text()) for p in sorted(root.glob("trials/*/trial.json"))]


@pytest.mark.parametrize(
    ("config", "how"), [(LLAMA, {"max_shard_size": "20KB"}), (OURS, {})], ids=["llama", "own"]
)
def test_every_seed_starts_from_the_weights_of_a_folder(cli, tmp_path, config, how):
    model = write_hf(tmp_path / "base", config, **how)
    assert (len(list((tmp_path / "base").glob("*.safetensors"))) > 1) == bool(how)
    job, out = job_from(tmp_path, "base"), tmp_path / "runs"
    sets = [x for s in STILL for x in ("--set", s)]
    text = cli("plan", job, "--out", out, *sets)
    (key,) = {p.parent.name for p in (out / ".cache" / "weights").glob("*/model.safetensors")}
    assert f"start: main/a: from the weights of {tmp_path}/base ({key[:12]}), whatever the seed" in text
    assert "order of the data only" in text
    cli("sweep", job, "--out", out, "--inline", *sets)
    assert [s.weights for s in specs(out / "tiny")] == [key, key]
    assert len({s.id for s in specs(out / "tiny")}) == 2
    for spec in specs(out / "tiny"):
        trained = load_trained(out / "tiny" / "trials" / spec.id).model
        assert equal_weights(trained, model)
        assert trained.config == config.replace(init={})
    assert kept_config(out / ".cache", key) == config.replace(init=trained.config.init)


def test_the_original_is_read_again_only_when_it_changed(tmp_path, monkeypatch):
    from models.hf import files

    reads = []
    read = files.read_pretrained
    monkeypatch.setattr(files, "read_pretrained", lambda source: reads.append(source) or read(source))
    write_hf(tmp_path / "base", LLAMA)
    job, out = job_from(tmp_path, "base"), tmp_path / "runs"

    def ids():
        return [t.id for t in fabric.plan(job, overrides=STILL, out=out).trials]

    first = ids()
    assert ids() == first
    (tmp_path / "base").rename(tmp_path / "away")
    assert ids() == first
    end = fabric.sweep(job, overrides=STILL, out=out, runner="inline")
    assert not end.failed
    assert sorted(s.id for s in specs(end.root)) == sorted(first)
    assert len(reads) == 1
    write_hf(tmp_path / "base", LLAMA, seed=4)
    changed = ids()
    assert not set(changed) & set(first)
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "away").rename(tmp_path / "base")
    assert ids() == first, "what was kept of it is still there"


def test_a_trial_of_ours_is_a_start_and_its_job_s_settings_may_be_written_where_they_agree(swept, tmp_path):
    trial = sorted((swept.root / "trials").iterdir())[0]
    given = load_trained(trial).model
    extra = f"    d_model: 32\n    norm_placement: {given.config.norm_placement}\n    max_seq_len: 128\n"
    job = job_from(tmp_path, trial, extra + "    mixer: {n_heads: 4, rope_theta: 1e4}\n")
    end = fabric.sweep(job, overrides=STILL, out=tmp_path / "runs", runner="inline")
    for spec in specs(end.root):
        trained = load_trained(end.root / "trials" / spec.id).model
        assert equal_weights(trained, given)
        assert trained.config == given.config.replace(max_seq_len=128)
    status = trial / "attempts" / "1" / "status.json"
    copy = tmp_path / "copy" / "trials" / trial.name
    shutil.copytree(trial, copy)
    status = copy / "attempts" / "1" / "status.json"
    status.write_text(status.read_text().replace('"finished"', '"running"'))
    with pytest.raises(JobError, match=rf"job.yaml:5: base.model.from: trial {trial.name} is not finished"):
        fabric.plan(job_from(tmp_path, copy), out=tmp_path / "runs")


def test_pretrained_against_from_scratch_is_two_arms(tmp_path):
    write_hf(tmp_path / "base", LLAMA.replace(vocab_size=257))
    body = {**LLAMA.model_dump(exclude_unset=True), "init": {"std": 0.05}}
    text = JOB.replace(
        MODEL, "".join(f"    {k}: {json.dumps(v)}\n" for k, v in body.items() if k != "vocab_size")
    )
    job = write_job(tmp_path, text)

    def arms(extra: str) -> str:
        return f"search.axes=[{{arms: [{{name: scratch}}, {{name: base, set: {{{extra}}}}}]}}]"

    with pytest.raises(JobError, match=r"init.std: 0.1 has no effect: the weights of .*/base are there"):
        fabric.plan(job, overrides=[arms("model.from: base, model.init.std: 0.1")], out=tmp_path / "runs")
    with pytest.raises(
        JobError, match=r"in arm 'base', model.from replaces model.n_layers, which is set before it"
    ):
        fabric.plan(job, overrides=[arms("model.n_layers: 7, model.from: base")], out=tmp_path / "runs")
    made = fabric.plan(job, overrides=[arms("model.from: base")], out=tmp_path / "runs")
    assert len({t.id for t in made.trials}) == 4
    assert [s.split(":")[0] for s in made.starts] == ["main/base"]
    shallow = ["model.n_layers=1", "search.match=params", arms("model.from: base")]
    with pytest.raises(
        JobError, match=r"search.match: params: an arm that starts from .*/base has the widths"
    ):
        fabric.plan(job, overrides=shallow, out=tmp_path / "runs")


@pytest.mark.parametrize(
    ("extra", "sets", "words"),
    [
        ("    d_model: 64\n", [], r"job.yaml:6: base.model.d_model: 64 is not what the weights of .*/base have \(32\)"),
        ("    mixer: {kind: mha}\n", [], r"job.yaml:6: base.model.mixer.kind: mha is not what .* have \(gqa\)"),
        ("", ["model.mixer.rope_theta=1e4"], r"--set .*: base.model.mixer.rope_theta: 1e4 is not what .*5000"),
        ("    preset: smollm-tiny\n", [], r"job.yaml:6 \(preset smollm-tiny\): base.model.vocab_size: 512 is not"),
        ("", ["model.from=nowhere"], r"base.model.from: 'nowhere' is nowhere: neither .*nowhere nor .*hub:OWNER/NAME"),
        ("", ["model.from=3"], r"base.model.from: 3 is no text"),
        ("    frm: base\n", [], r"job.yaml:6: base.model.frm: unknown key 'frm'; did you mean 'from'"),
        ("    max_seq_len: 16\n", [], r"base.data.seq_len: 32 tokens are more than the model's max_seq_len=16"),
        ("", ["data.tokenizer={kind: bpe, vocab_size: 300}"],
         r"base.data.tokenizer: its 300 ids are more than the 260 of the weights in .*/base; use the tokenizer"),
    ],
)  # fmt: skip
def test_what_does_not_agree_with_the_weights_names_the_line_and_the_fix(tmp_path, extra, sets, words):
    write_hf(tmp_path / "base", LLAMA)
    with pytest.raises(JobError, match=words):
        fabric.plan(job_from(tmp_path, "base", extra), overrides=sets, out=tmp_path / "runs")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ('""', "an empty name; give a Hugging Face folder, a .gguf file"),
        ("loop", "loop': its links lead in a circle"),
        ("dir.gguf", "dir.gguf holds no model"),
        ("x" * 5000, "cannot be looked at: File name too long"),
        ('"a\\0b"', "is no path: embedded null byte"),
        ("absent", "'absent' is nowhere: not /"),
        ("hub:a", "'hub:a' is no id on the hub; give a Hugging Face folder"),
        ("adapter", "it holds an adapter of PEFT"),
    ],
)
def test_a_name_that_is_no_model_is_one_error_with_its_line(cli, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dir.gguf").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    job = job_from(tmp_path, name)
    cli("plan", job, "--out", tmp_path / "runs", code=2)
    assert cli.err.startswith(f"error: {job}:5: base.model.from: ")
    assert words in cli.err
    assert len(cli.err.splitlines()) == 1
    assert "neither" not in cli.err, "of a single place"


def test_another_tokenizer_than_the_weights_own_is_warned_of(tmp_path):
    from fabric.data.tokenizer import ByteTokenizer

    write_hf(tmp_path / "base", LLAMA)
    job, out = job_from(tmp_path, "base"), tmp_path / "runs"
    bpe = "data.tokenizer={kind: bpe, vocab_size: 258}"

    def warnings(*overrides):
        made = fabric.plan(job, overrides=[*STILL, *overrides], out=out)
        return [w for w in made.warnings if "tokenizer" in w]

    assert not warnings(bpe), "none lies beside the weights"
    (tmp_path / "base" / "tokenizer.json").write_text(ByteTokenizer().json)
    assert not warnings()
    (warning,) = warnings(bpe)
    assert warning.startswith(
        "main/a: the tokenizer (bpe) is not the one the weights were trained with, unless"
    )
    assert "tokenizer: {kind: file, path: its tokenizer.json}" in warning
    end = fabric.sweep(job, overrides=[*STILL, bpe, "search.seeds=1"], out=out, runner="inline")
    assert any("it gives text other ids" in w for w in end.warnings)
    trained = out / "tiny" / "trials" / specs(out / "tiny")[0].id
    job = job_from(tmp_path, trained)
    assert not warnings(bpe), "it is the tokenizer of that trial"
    assert "it gives text other ids" in warnings()[0]


def test_an_id_on_the_hub_that_cannot_be_reached_says_what_to_do(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, why in (
        ("hub:nobody/nothing-here", ""),
        ("nobody/nothing-here", f"'nobody/nothing-here' is no path (neither {tmp_path}"),
    ):
        job = job_from(tmp_path, name)
        cli("plan", job, "--out", tmp_path / "runs", code=2)
        assert f"error: {job}:5: base.model.from: {why}" in cli.err
        assert "nobody/nothing-here cannot be read" in cli.err
        assert "give its folder" in cli.err


def test_incomplete_weights_are_refused(tmp_path):
    import safetensors.torch

    write_hf(tmp_path / "base", LLAMA)
    file = tmp_path / "base" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(JobError, match=r"does not hold all weights .*layers.1.mlp.up_proj.weight"):
        fabric.plan(job_from(tmp_path, "base"), out=tmp_path / "runs")


def test_training_imports_no_transformers_and_refuses_damaged_weights(tmp_path):
    write_hf(tmp_path / "base", LLAMA)
    job, out = job_from(tmp_path, "base"), tmp_path / "runs"
    fabric.plan(job, overrides=STILL, out=out)
    code = (
        "import sys, fabric\n"
        f"end = fabric.run({str(job)!r}, overrides={STILL!r}, out={str(out)!r})\n"
        "assert end['state'] == 'finished', end\n"
        "assert not {'transformers', 'models.hf'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (spec,) = specs(out / "tiny")
    file = weights_file(out / ".cache", spec.weights)
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    other = spec.model_copy(update={"seed": 9})
    body = {"kind": "train", "trial": other.id, "spec": other.model_dump_json(), "store": str(out / "tiny"),
            "numerics": None, "cache": str(out / ".cache"), "rungs": [], "micro_batch_size": None, "invocation": 0,
            "source_hash": ""}  # fmt: skip
    shutil.copytree(out / "tiny" / "trials" / spec.id, out / "tiny" / "trials" / other.id)
    shutil.rmtree(out / "tiny" / "trials" / other.id / "attempts")
    with pytest.raises(
        ValueError, match=r"is damaged: its hash is not .*; delete its folder, and run `fabric plan`"
    ):
        perform(body, lambda row: None)


# -- GGUF ------------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, model: CausalLM, extra: tuple[str, ...] = (), scaling: str | None = None) -> None:
    """A llama of ours as llama.cpp stores it: fp32, queries and keys with neighbouring pairs rotated."""
    import gguf

    config, mixer = model.config, model.config.mixer
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn.d_ff)
    writer.add_head_count(mixer.n_heads)
    writer.add_head_count_kv(mixer.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm.eps)
    writer.add_rope_freq_base(mixer.rope_theta)
    if scaling is not None:
        writer.add_string("llama.rope.scaling.type", scaling)
    for name in extra:
        writer.add_tensor(name, np.ones(model.config.d_model, np.float32))
    names = {"mixer.q": "attn_q", "mixer.k": "attn_k", "mixer.v": "attn_v", "mixer.o": "attn_output",
             "ffn.gate": "ffn_gate", "ffn.up": "ffn_up", "ffn.down": "ffn_down", "mixer_norm_in": "attn_norm",
             "ffn_norm_in": "ffn_norm"}  # fmt: skip
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().numpy()
        if name.startswith("layers."):
            _, i, rest = name.split(".", 2)
            ours = rest.removesuffix(".weight")
            if ours in ("mixer.q", "mixer.k"):
                heads = mixer.n_heads if ours == "mixer.q" else mixer.n_kv_heads
                tensor = tensor.reshape(heads, 2, -1, config.d_model).swapaxes(1, 2).reshape(tensor.shape)
            writer.add_tensor(f"blk.{i}.{names[ours]}.weight", np.ascontiguousarray(tensor))
        else:
            writer.add_tensor("token_embd.weight" if name == "embed.weight" else "output_norm.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_a_start(tmp_path):
    model = build(LLAMA, seed=5)
    write_gguf(tmp_path / "tiny.gguf", model)
    end = fabric.sweep(
        job_from(tmp_path, "tiny.gguf"), overrides=STILL, out=tmp_path / "runs", runner="inline"
    )
    for spec in specs(end.root):
        assert equal_weights(load_trained(end.root / "trials" / spec.id).model, model)


@pytest.mark.parametrize(
    ("extra", "scaling", "words"),
    [
        (
            ("blk.0.attn_q.bias",),
            None,
            r"has no place for .blk.0.attn_q.bias.; without them it would be another",
        ),
        (("blk.2.attn_norm.weight",), None, r"has no place for .blk.2.attn_norm.weight."),
        (("rope_freqs.weight",), None, r"holds rope_freqs.weight, a scaling of the rotary positions"),
        ((), "linear", r"a scaling of the rotary positions .llama.rope.scaling.type."),
    ],
)
def test_what_is_not_read_of_a_gguf_file_is_refused(tmp_path, extra, scaling, words):
    from models.hf.files import read_pretrained

    write_gguf(tmp_path / "tiny.gguf", build(LLAMA, seed=5), extra, scaling)
    with pytest.raises(ValueError, match=words):
        read_pretrained(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_gguf_file_that_is_cut_off_says_so(tmp_path, part):
    from models.hf.files import read_pretrained

    file = tmp_path / "tiny.gguf"
    write_gguf(file, build(LLAMA, seed=5))
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(
        ValueError, match=r"tiny.gguf cannot be read: it is .* bytes.*fetch it again, complete$"
    ):
        read_pretrained(file)
