"""Initial values, outputs, the cache's and the masks' errors."""

import pytest
import torch
from models_cases import VARIANTS, config_of, ids_of

from models import Cache, build, preset


def test_initial_values_depend_on_seed_and_name_alone():
    one, again, other = (build(preset("smollm-tiny"), seed=s) for s in (0, 0, 1))
    for (name, a), b, c in zip(one.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c), name


def test_architectures_share_the_values_of_equal_names_and_shapes():
    gqa = dict(build(config_of(VARIANTS["gqa"])).named_parameters())
    mla = dict(
        build(config_of(VARIANTS["mla_simple"], norm_placement="sandwich", n_layers=3)).named_parameters()
    )
    shared = [n for n in gqa.keys() & mla.keys() if gqa[n].shape == mla[n].shape]
    assert {"embed.weight", "layers.1.ffn.up.weight", "layers.1.mixer.q.weight"} <= set(shared)
    assert all(torch.equal(gqa[n], mla[n]) for n in shared)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    build(preset("smollm-tiny"))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("std", "expected"), [(0.02, 0.02), (None, 64**-0.5)])
def test_standard_deviation_of_initial_values(std, expected):
    model = build(
        preset("olmo2-tiny", init={"std": std, "depth_scaled": True}, ffn={"kind": "gelu", "d_ff": 99})
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all()
            continue
        writes = ".mixer.o." in name or ".ffn.down." in name
        wanted = expected / 8**0.5 if writes else expected
        assert parameter.std().item() == pytest.approx(wanted, rel=0.05), name


def test_biases_start_at_zero():
    config = config_of(
        VARIANTS["mha"], ffn={"kind": "gelu", "d_ff": 8, "bias": True}, norm={"kind": "layernorm"}
    )
    biases = [p for n, p in build(config).named_parameters() if n.endswith("bias")]
    assert len(biases) == 2 * (2 + 2) + 1
    assert all((b == 0).all() for b in biases)


def test_hidden_times_head_is_logits():
    for tied in (True, False):
        model = build(config_of(VARIANTS["gqa"], tie_embeddings=tied))
        ids = ids_of(2, 8)
        out = model(ids, output_hidden_states=True)
        assert len(out.hidden_states) == 3
        assert torch.equal(out.hidden_states[0], model.embed(ids))
        assert torch.equal(out.hidden_states[-1], model.hidden(ids))
        assert torch.equal(model.hidden(ids) @ model.lm_head_weight.T, out.logits)
        assert (model.lm_head_weight is model.embed.weight) is tied
        assert out.attentions is None


def test_approximate_gelu_is_another_function():
    exact, tanh = (
        build(config_of(VARIANTS["mha"], ffn={"kind": "gelu", "d_ff": 8, "approximate": a}))
        for a in ("none", "tanh")
    )
    difference = (exact(ids_of(1, 8)).logits - tanh(ids_of(1, 8)).logits).abs().max()
    assert 0 < difference < 1e-2


def test_rope_theta_and_norm_eps_are_used():
    ids = ids_of(1, 8)
    plain = build(config_of(VARIANTS["mha"]))(ids).logits
    other_theta = build(config_of({**VARIANTS["mha"], "rope_theta": 100.0}))(ids).logits
    other_eps = build(config_of(VARIANTS["mha"], norm={"eps": 0.1}))(ids).logits
    assert (plain - other_theta).abs().max() > 1e-3
    assert (plain - other_eps).abs().max() > 1e-3


def test_bf16_models_stay_close_to_fp32():
    model = build(config_of(VARIANTS["gqa"], init={"std": 0.02})).eval()
    ids = ids_of(2, 16)
    with torch.no_grad():
        wide = model(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            auto = model(ids).logits
        narrow = model.bfloat16()(ids).logits
    assert auto.dtype == narrow.dtype == torch.bfloat16
    assert (auto - wide).abs().max() < 0.02 * wide.abs().max()
    assert (narrow - wide).abs().max() < 0.04 * wide.abs().max()


@pytest.mark.parametrize("name", VARIANTS)
def test_autocast_trains(name):
    model = build(config_of({**VARIANTS[name], "qk_norm": "head", "window": 5}))
    with torch.autocast("cpu", torch.bfloat16):
        model(ids_of(2, 12)).logits.float().logsumexp(-1).mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_capacity_left_over_and_batches_of_one(name):
    model = build(config_of({**VARIANTS[name], "window": 30}))
    cache = model.new_cache(1, 20)
    ids = ids_of(1, 12)
    with torch.no_grad():
        model(ids[:, :11], cache=cache)
        last = model(ids[:, 11:], cache=cache).logits[:, -1]
        torch.testing.assert_close(last, model(ids).logits[:, -1], atol=1e-5, rtol=0)
    assert cache.n_tokens == 12


def test_what_does_not_fit_is_refused():
    model = build(config_of(VARIANTS["mha"]))
    with pytest.raises(ValueError, match="65 tokens are more than max_seq_len=64"):
        model(ids_of(1, 65))
    with pytest.raises(ValueError, match="capacity 65 is outside"):
        Cache(model.config, 1, 65)
    cache = model.new_cache(2, 8)
    with torch.no_grad():
        with pytest.raises(ValueError, match="room for 8 tokens, 9 are needed"):
            model(ids_of(2, 9), cache=cache)
        with pytest.raises(ValueError, match="made for batches of 2, this one has 1"):
            model(ids_of(1, 3), cache=cache)
        model(ids_of(2, 4), cache=cache)
        with pytest.raises(ValueError, match=r"3 columns; give 2 .* or 6"):
            model(ids_of(2, 2), torch.ones(2, 3), cache=cache)
        assert cache.n_tokens == 4
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(ids_of(2, 4), torch.ones(2, 5))


def test_state_dict_holds_parameters_only():
    model = build(preset("smollm-tiny"))
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
