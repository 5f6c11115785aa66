"""Folders read from disk: what is damaged, or more than a model, is one line that names the file and the fix."""

import json
import shutil

import pytest
import torch
from hf_cases import config_of_case, random_model
from safetensors.torch import load_file, save_file

from models import to_hf
from models.hf.files import read_pretrained, read_tokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files") / "whole"
    to_hf(random_model(config_of_case("smollm-tiny"))).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def refused(source):
    with pytest.raises(ValueError) as error:
        read_pretrained(source)
    text = str(error.value)
    assert text.startswith(str(source))
    assert "\n" not in text
    assert "http" not in text
    return text


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (WEIGHTS, b"", ["model.safetensors is cut off or damaged (0 bytes)", "fetch it again"]),
        (WEIGHTS, b"\xff" * 500, ["model.safetensors is cut off or damaged (500 bytes)"]),
        (WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n", ["git lfs pull"]),
        (WEIGHTS, None, ["it holds no model.safetensors", "fetch it again"]),
        (CONFIG, b'{"model_type": ', ["config.json is no JSON", "fetch it again"]),
        (CONFIG, b"[1]", ["config.json is no mapping"]),
        (CONFIG, None, ["config.json: No such file"]),
        ("adapter_config.json", b"{}", ["an adapter of PEFT", "merge_and_unload()"]),
    ],
)
def test_a_damaged_file_is_named_with_the_fix(folder, file, content, words):
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content)
    text = refused(folder)
    assert all(w in text for w in words), text


def test_weights_cut_off_and_shards_that_are_missing(folder, whole, tmp_path):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])
    assert "is cut off or damaged" in refused(folder)
    file.unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert "model-1.safetensors and 1 more of its weights is not there" in refused(folder)
    index.write_text("{}")
    assert "does not say which weight is in which file" in refused(folder)
    assert "it is not there; give a Hugging Face folder" in refused(tmp_path / "absent")
    assert "it is a file; give a Hugging Face folder" in refused(whole / CONFIG)
    with pytest.raises(ValueError, match=r"'no/such/folder' is no folder, and no id on the Hugging Face hub"):
        read_pretrained("no/such/folder")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "72"}, "hidden_size='72' (only a whole number of at least 1)"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5 (only a whole"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 (only a whole"),
        ({"max_position_embeddings": None}, "max_position_embeddings=None"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6' (only a number)"),
        ({"rms_norm_eps": 0.0}, "norm.eps=0.0: Input should be greater than 0"),
        ({"rope_parameters": "linear"}, "rope_parameters='linear' (only a mapping)"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5, "rope_theta": 1e4}}, "factor=0.5: Input"),
        ({"hidden_act": "banana"}, "hidden_act='banana' (only 'silu')"),
        ({"intermediate_size": 99}, "missing or of another shape: model.layers.0.mlp.down_proj.weight"),
        ({"num_hidden_layers": 2}, "no place for (model.layers.2.input_layernorm.weight, "),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel cannot be converted"),
    ],
)
def test_a_config_that_is_wrong_says_which_setting(folder, changes, words):
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, **changes}))
    assert words in refused(folder)


@torch.no_grad()
def test_weights_that_the_model_has_no_place_for_are_refused_by_name(folder, whole):
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, folder / WEIGHTS)
    ids = torch.arange(9).view(1, 9)
    assert torch.equal(read_pretrained(folder)(ids).logits, read_pretrained(whole)(ids).logits)
    extra = {f"model.layers.{i}.self_attn.{x}_norm.weight": torch.ones(8) for x in "qk" for i in range(3)}
    save_file({**tensors, **extra}, folder / WEIGHTS)
    text = refused(folder)
    assert "model.layers.0.self_attn.k_norm.weight" in text
    assert "and 2 more" in text


def test_a_tokenizer_that_cannot_be_read_is_one_line(folder):
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"model has no tokenizer that can be read: .") as error:
        read_tokenizer(folder)
    assert "\n" not in str(error.value)
