"""Weights on plain data: rows in their order, a folder read without transformers, wrong tensors refused."""

import subprocess
import sys

import pytest
import torch
from hf_cases import CASES, config_of_case, random_model

from models import build, preset, to_hf
from models.hf import convert_weights, export_weights, family_of
from models.hf.weights import head_order


@pytest.mark.parametrize(
    ("width", "turned", "is_interleaved", "order"),
    [
        (8, 8, False, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 8, True, [0, 2, 4, 6, 1, 3, 5, 7]),
        (8, 4, True, [0, 2, 4, 5, 1, 3, 6, 7]),
        (8, 4, False, [0, 1, 4, 5, 2, 3, 6, 7]),
    ],
)
def test_pairs_of_theirs_are_i_and_i_plus_half_of_ours(width, turned, is_interleaved, order):
    assert head_order(width, turned, is_interleaved).tolist() == order


@pytest.mark.parametrize("name", CASES)
def test_weights_go_there_and_back_bit_for_bit(name):
    model = random_model(config_of_case(name))
    state = model.state_dict()
    back = convert_weights(model.config, export_weights(model.config, state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_tensors_missing_or_left_over_are_named():
    config = preset("glm4-tiny")
    weights = export_weights(config, build(config).state_dict())
    with pytest.raises(ValueError, match=r"Glm4ForCausalLM of this config: they lack model.norm.weight"):
        convert_weights(config, {k: v for k, v in weights.items() if k != "model.norm.weight"})
    extra = {f"model.layers.{i}.self_attn.q_proj.bias": torch.zeros(72) for i in range(6)}
    with pytest.raises(ValueError, match=r"they also hold model.layers.0.self_attn.q_proj.bias.* and 2 more"):
        convert_weights(config, {**weights, **extra})
    harmless = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    assert convert_weights(config, {**weights, **harmless}).keys() == build(config).state_dict().keys()


READ = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from models.decoder import uninitialised
from models.hf import convert_config, convert_weights, family_in
folder = Path(sys.argv[1])
settings = json.loads((folder / "config.json").read_text())
config = convert_config(settings)
model = uninitialised(config)
weights = load_file(folder / "model.safetensors")
model.load_state_dict(convert_weights(config, weights, family_in(settings)))
ids = torch.arange(24).view(1, 24)
print(model(ids).logits.double().sum().item())
"""


@torch.no_grad()
def test_a_folder_is_read_as_plain_data(tmp_path):
    pytest.importorskip("transformers")
    model = random_model(config_of_case("glm4-tiny"))
    assert family_of(model.config).is_interleaved
    to_hf(model).save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True
    )
    ids = torch.arange(24).view(1, 24)
    assert float(done.stdout) == pytest.approx(model(ids).logits.double().sum().item(), rel=1e-6)
