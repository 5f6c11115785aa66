"""Weights on plain data: rows in their order, a folder read by its tensors, wrong tensors refused."""

import json

import pytest
import torch
from hf_cases import CASES, config_of_case, random_model
from safetensors.torch import load_file

from models import build, from_hf, preset, to_hf
from models.decoder import uninitialised
from models.hf import convert_config, convert_weights, export_weights, family_in, family_of
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


def test_an_output_matrix_of_its_own_is_not_thrown_away():
    config = preset("smollm-tiny")
    assert config.tie_embeddings
    weights = export_weights(config, build(config).state_dict())
    copied = {**weights, "lm_head.weight": weights["lm_head.weight"].clone()}
    assert convert_weights(config, copied).keys() == build(config).state_dict().keys()
    other = {**weights, "lm_head.weight": weights["lm_head.weight"] + 1}
    with pytest.raises(
        ValueError, match=r"lm_head.weight is not model.embed_tokens.weight: set tie_word_emb"
    ):
        convert_weights(config, other)
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=32, **sizes))
    bert.cls.predictions.decoder.weight = torch.nn.Parameter(torch.zeros(32, 16))
    with pytest.raises(ValueError, match=r"decoder.weight is not bert.embeddings.word_embeddings.weight"):
        from_hf(bert)


@torch.no_grad()
def test_a_folder_is_read_as_plain_data(tmp_path):
    model = random_model(config_of_case("glm4-tiny"))
    assert family_of(model.config).is_interleaved
    to_hf(model).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    read = uninitialised(convert_config(settings))
    weights = load_file(tmp_path / "model.safetensors")
    read.load_state_dict(convert_weights(read.config, weights, family_in(settings)))
    ids = torch.arange(24).view(1, 24)
    assert torch.equal(read(ids).logits, model(ids).logits)
