"""A readout on a decoder and on an encoder; low-rank adaptation: as it was at first, in its gradients, merged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import ModelConfig, Readout, build
from models.lora import LoRALinear, adaptable, add_lora, merge_lora

BODY = {"vocab_size": 50, "d_model": 32, "n_layers": 2, "max_seq_len": 40, "init": {"std": 0.3}}
PARTS = {"mixer": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2}, "ffn": {"kind": "swiglu", "d_ff": 48}}
MLA = {"kind": "mla", "n_heads": 2, "kv_latent_dim": 8, "qk_nope_dim": 8, "qk_rope_dim": 4, "v_head_dim": 8}


def config_of(**changes) -> ModelConfig:
    return ModelConfig.model_validate({**BODY, **PARTS, **changes})


def padded_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 40, 33 and 9 ids; asked at their ends and in the middle."""
    ids_BT = torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(0))
    asked_BT = torch.zeros(3, 40, dtype=torch.bool)
    for row, n in enumerate((40, 33, 9)):
        ids_BT[row, n:] = -1
        asked_BT[row, [n // 2, n - 1]] = True
    return ids_BT, asked_BT


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_no_output(causal):
    readout = Readout(build(config_of(causal=causal)), 3).eval()
    ids_BT, asked_BT = padded_rows()
    together = readout(ids_BT, asked_BT)
    assert together.shape == (6, 3)
    alone = [
        readout(ids[ids >= 0][None], asked[ids >= 0][None])
        for ids, asked in zip(ids_BT, asked_BT, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-5)


def test_an_output_is_a_map_of_the_final_hidden_state():
    model = build(config_of())
    readout = Readout(model, 3)
    ids_BT, asked_BT = torch.randint(0, 50, (2, 20)), torch.rand(2, 20) < 0.3
    hidden = model.hidden(ids_BT)[asked_BT]
    want = hidden @ readout.readout.weight.T + readout.readout.bias
    torch.testing.assert_close(readout(ids_BT, asked_BT), want)
    assert readout.readout.weight.std() > 0.1
    assert not readout.readout.bias.any()


def test_its_initial_values_depend_on_the_seed_alone_and_the_trunk_s_stay():
    first, other, again = (Readout(build(config_of(), 5), 4, seed) for seed in (1, 2, 1))
    assert torch.equal(first.readout.weight, again.readout.weight)
    assert not torch.equal(first.readout.weight, other.readout.weight)
    for a, b in zip(first.trunk.parameters(), other.trunk.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="n_outputs=0"):
        Readout(build(config_of()), 0)


def test_an_output_matrix_that_nothing_asks_is_not_there():
    config = config_of(tie_embeddings=False)
    names = [name for name, _ in Readout(build(config), 2).named_parameters()]
    assert not [name for name in names if "lm_head" in name]
    readout = Readout(build(config), 2)
    readout(torch.randint(0, 50, (2, 8)), torch.ones(2, 8, dtype=torch.bool)).sum().backward()
    assert all(p.grad is not None for p in readout.parameters())


# ---- low-rank adaptation


@pytest.mark.parametrize("mixer", [PARTS["mixer"], MLA], ids=["gqa", "mla"])
def test_an_adapted_model_begins_as_it_was_and_trains_only_what_was_added(mixer):
    config = config_of(mixer=mixer)
    ids_BT = torch.randint(0, 50, (2, 30))
    model = build(config)
    want = model(ids_BT).logits
    targets = adaptable(model)
    add_lora(model, 4, 8, targets, seed=0)
    torch.testing.assert_close(model(ids_BT).logits, want)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    n_added = sum(isinstance(m, LoRALinear) for m in model.modules())
    assert n_added == 2 * len(targets)
    assert len(trained) == 2 * n_added
    assert all(name.endswith((".a", ".b")) for name in trained)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(ids_BT).logits.square().mean().backward()
        optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trained
    want = model(ids_BT).logits
    merge_lora(model)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    assert set(dict(model.named_parameters())) == set(dict(build(config).named_parameters()))
    torch.testing.assert_close(model(ids_BT).logits, want, atol=2e-5, rtol=1e-5)


def test_the_addition_is_the_papers():
    model = build(config_of())
    query = model.layers[0].mixer.q.weight.clone()
    add_lora(model, 4, 8, ["q"], seed=0)
    layer = model.layers[0].mixer.q
    assert layer.a.shape == (4, 32)
    assert layer.b.shape == (32, 4)
    assert not layer.b.any()
    assert layer.a.std().item() == pytest.approx(32**-0.5, rel=0.25)
    nn.init.normal_(layer.b)
    x = torch.randn(5, 32)
    torch.testing.assert_close(layer(x), x @ query.T + 8 / 4 * (x @ layer.a.T) @ layer.b.T)


def test_a_readout_on_an_adapted_model_is_trained_whole():
    readout = Readout(build(config_of()), 3)
    add_lora(readout, 2, 4, ["q", "v"], seed=0)
    assert readout.readout.weight.requires_grad
    assert readout.readout.bias.requires_grad
    assert not readout.trunk.embed.weight.requires_grad
    assert not readout.trunk.final_norm.weight.requires_grad


def test_unknown_matrices_are_told():
    with pytest.raises(
        ValueError, match="no matrix of the model is called 'query'; there are q, k, v, o, gate"
    ):
        add_lora(build(config_of()), 4, 8, ["query"], seed=0)
    assert "kv_up" not in adaptable(build(config_of(mixer=MLA)))


@pytest.mark.slow
def test_it_is_pefts():
    """The same additions, put into peft's layers, give the same outputs and gradients."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from models.hf import to_transformers

    config = config_of()
    ours = build(config)
    theirs = to_transformers(build(config))
    theirs = peft.get_peft_model(
        theirs, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    )
    add_lora(ours, 4, 8, ["q", "v"], seed=0)
    mine = {}
    for i, layer in enumerate(ours.layers):
        for name in ("q", "v"):
            lora = getattr(layer.mixer, name)
            nn.init.normal_(lora.b, std=0.1)
            its = getattr(theirs.base_model.model.model.layers[i].self_attn, f"{name}_proj")
            its.lora_B.default.weight.data.copy_(lora.b)
            its.lora_A.default.weight.data.copy_(lora.a)
            mine[lora] = its
    ids_BT = torch.randint(0, 50, (2, 20))
    ours_out, its_out = ours(ids_BT).logits, theirs(ids_BT).logits
    torch.testing.assert_close(ours_out, its_out, atol=1e-5, rtol=1e-5)
    ours_out.square().mean().backward()
    its_out.square().mean().backward()
    for lora, its in mine.items():
        torch.testing.assert_close(lora.a.grad, its.lora_A.default.weight.grad, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(lora.b.grad, its.lora_B.default.weight.grad, atol=1e-5, rtol=1e-4)
