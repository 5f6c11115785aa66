"""Rotations: frequencies and amplitudes as transformers has them, partial ones, tables shared by layers."""

import pytest
import torch
from models_cases import LLAMA3, YARN, config_of, example, ids_of
from models_cases import MIXERS as PARTS
from pydantic import TypeAdapter

from models import build, preset
from models.mixers.base import AttentionConfig
from models.rope import Rotary, RotaryTable, rotate
from models.rope_scaling import RopeScaling

SCALINGS = [
    None,
    {"kind": "linear", "factor": 3.5},
    LLAMA3,
    {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
    {**LLAMA3, "low_freq_factor": 0.5, "high_freq_factor": 2.0},
    YARN,
    {**YARN, "factor": 40.0, "original_max_position_embeddings": 4096},
    {**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    {**YARN, "original_max_position_embeddings": 4096, "truncate": False},
    {**YARN, "attention_factor": 1.3},
    {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    {**YARN, "mscale": 0.7},
    {**YARN, "factor": 1.0, "mscale_all_dim": 1.0},
]


def scaling_of(fields):
    return None if fields is None else TypeAdapter(RopeScaling).validate_python(fields)


@pytest.mark.parametrize("fields", SCALINGS)
@pytest.mark.parametrize(
    ("width", "turned", "theta"), [(16, 16, 10000.0), (64, 64, 500000.0), (64, 32, 1000.0)]
)
def test_frequencies_and_amplitude_are_those_of_transformers(fields, width, turned, theta):
    transformers = pytest.importorskip("transformers")
    from transformers.models.glm4.modeling_glm4 import Glm4RotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": turned / width}
    if fields is not None:
        rope |= {key: value for key, value in fields.items() if key != "kind"} | {"rope_type": fields["kind"]}
    config = transformers.Glm4Config(
        hidden_size=4 * width, num_attention_heads=4, head_dim=width, rope_parameters=rope,
        max_position_embeddings=64,
    )  # fmt: skip
    theirs = Glm4RotaryEmbedding(config)
    scaling = scaling_of(fields)
    rotary = Rotary(width, turned, theta, scaling)
    torch.testing.assert_close(rotary.frequencies(), theirs.inv_freq, rtol=1e-6, atol=0)
    assert (1.0 if scaling is None else scaling.amplitude) == pytest.approx(
        theirs.attention_scaling, rel=1e-12
    )
    cos, sin = theirs(torch.zeros(1), torch.arange(64)[None])
    table, half = RotaryTable(rotary, 64), turned // 2
    for ours, wanted in ((table.cos, cos), (table.signed_sin, -sin)):
        torch.testing.assert_close(ours[:, 0, :half], wanted[0, :, :half], atol=1e-5, rtol=0)


@pytest.mark.parametrize("fields", SCALINGS[1:])
def test_scores_of_latent_attention_are_scaled_as_deepseeks(fields):
    pytest.importorskip("transformers")
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

    rope = {**fields, "rope_type": fields["kind"]}
    layer = build(config_of(example(PARTS["mla"], rope_scaling=fields))).layers[0].mixer
    assert layer.scale == pytest.approx(yarn_apply_mscale(rope, 16**-0.5), rel=1e-12)


def test_what_does_not_turn_is_left_bit_for_bit():
    rotary = Rotary(12, 4, 100.0, scaling_of(YARN))
    table = RotaryTable(rotary, 32)
    x = torch.randn(2, 32, 3, 12)
    turned = rotate(x, table.at(0, 32))
    still = [2, 3, 4, 5, 8, 9, 10, 11]
    assert torch.equal(turned[..., still], x[..., still])
    assert (turned[:, 1:, :, [0, 1, 6, 7]] - x[:, 1:, :, [0, 1, 6, 7]]).abs().amin(dim=(0, 2)).max() > 1e-3
    norms = [t[..., [0, 1, 6, 7]].norm(dim=-1) for t in (turned, x)]
    torch.testing.assert_close(norms[0], norms[1] * rotary.scaling.amplitude)


def test_layers_share_tables_where_they_turn_alike():
    mixer = example(PARTS["gqa"], mixer_pattern=[
        {}, {"window": 4}, {"rope_theta": 50.0}, {"position": "nope"}, {"rope_scaling": YARN},
        {"n_kv_heads": 4}, {"rope_scaling": YARN, "qk_norm": "head"},
    ])  # fmt: skip
    model = build(config_of(mixer, n_layers=8))
    assert model.rope_of == [0, 0, 1, None, 2, 0, 2, 0]
    assert len(model.ropes) == 3
    assert not [name for name in model.state_dict() if "rope" in name]


@pytest.mark.parametrize("name", [kind for kind, part in PARTS.items() if issubclass(part, AttentionConfig)])
@pytest.mark.parametrize("scaling", [LLAMA3, YARN], ids=lambda s: s["kind"])
@torch.no_grad()
def test_scaling_changes_the_numbers_of_every_mixer(name, scaling):
    ids = ids_of(1, 24)
    plain = build(config_of(example(PARTS[name])))(ids).logits
    scaled = build(config_of(example(PARTS[name], rope_scaling=scaling)))(ids).logits
    assert (plain - scaled).abs().max() > 1e-3


def test_angles_stay_fp32_in_a_model_of_16_bits():
    model = build(preset("smollm-tiny"))
    before = model.ropes[0].cos.clone()
    for half in (model.bfloat16(), model.half()):
        assert half.embed.weight.dtype != torch.float32
        assert half.ropes[0].cos.dtype == torch.float32
        assert torch.equal(half.ropes[0].cos, before)
