"""Latent attention against an oracle of its own, against its absorbed form, and against DeepSeek-V3's code."""

import math

import pytest
import torch
from models_cases import MIXERS, VARIANTS, config_of, example, ids_of

from models import build
from models.mixers.base import Step
from models.mixers.mla import LatentAttention
from models.mixers.mla_simple import SimpleLatentAttention

MLA_NAMES = [n for n in VARIANTS if n.startswith("mla") and "simple" not in n]


def rms(v, weight, eps):
    return [weight[i] * v[i] / math.sqrt(sum(x * x for x in v) / len(v) + eps) for i in range(len(v))]


def rotated(v, position, theta):
    half = len(v) // 2
    out = list(v)
    for i in range(half):
        angle = position * theta ** (-i / half)
        out[i] = v[i] * math.cos(angle) - v[i + half] * math.sin(angle)
        out[i + half] = v[i + half] * math.cos(angle) + v[i] * math.sin(angle)
    return out


def product(matrix, v):
    return [sum(w * x for w, x in zip(row, v, strict=True)) for row in matrix]


def simple_latent_attention(layer, x_TD, config, eps):
    """One text through `mla_simple`, in Python floats and loops, straight from its definition."""
    H, K = config.n_heads, layer.width
    weights = {n: p.tolist() for n, p in layer.named_parameters()}
    queries, keys, values = [], [], []
    for t, x in enumerate(x_TD.tolist()):
        latent = rms(product(weights["kv_down.weight"], x), weights["latent_norm.weight"], eps)
        q, kv = product(weights["q.weight"], x), product(weights["kv_up.weight"], latent)
        q_heads = [q[h * K : (h + 1) * K] for h in range(H)]
        k_heads = [kv[h * K : (h + 1) * K] for h in range(H)]
        if config.qk_norm == "head":
            q_heads = [rms(v, weights["q_norm.weight"], eps) for v in q_heads]
            k_heads = [rms(v, weights["k_norm.weight"], eps) for v in k_heads]
        if config.position != "nope":
            q_heads = [rotated(v, t, config.rope_theta) for v in q_heads]
            k_heads = [rotated(v, t, config.rope_theta) for v in k_heads]
        queries.append(q_heads)
        keys.append(k_heads)
        values.append([kv[(H + h) * K : (H + h + 1) * K] for h in range(H)])
    rows = []
    for t in range(len(queries)):
        first = 0 if config.window is None else max(0, t - config.window + 1)
        out = []
        for h in range(H):
            scores = [
                math.exp(sum(a * b for a, b in zip(queries[t][h], keys[s][h], strict=True)) / math.sqrt(K))
                for s in range(first, t + 1)
            ]
            out += [
                sum(w * values[s][h][i] for w, s in zip(scores, range(first, t + 1), strict=True))
                / sum(scores)
                for i in range(K)
            ]
        rows.append(product(weights["o.weight"], out))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("position", ["rope_on_expanded_k", "nope"])
@pytest.mark.parametrize("qk_norm", ["none", "head"])
@pytest.mark.parametrize("window", [None, 3])
@torch.no_grad()
def test_simple_form_against_a_loop_oracle(position, qk_norm, window):
    mixer = example(MIXERS["mla_simple"], position=position, qk_norm=qk_norm, window=window)
    model = build(config_of(mixer), seed=2).double()
    for rope in model.ropes:
        # The tables are made in fp32; the oracle's angles are exact.
        angles = torch.arange(64.0, dtype=torch.float64)[:, None] * 10000.0 ** (
            -torch.arange(4.0).double() / 4
        )
        rope.cos.copy_(angles.cos().repeat(1, 2)[:, None])
        rope.signed_sin.copy_(torch.cat((-angles.sin(), angles.sin()), 1)[:, None])
    layer = model.layers[0].mixer
    assert isinstance(layer, SimpleLatentAttention)
    for name, weight in layer.named_parameters():
        if name.endswith("norm.weight"):
            weight.copy_(torch.linspace(0.5, 1.5, len(weight)))
    x_TD = torch.randn(7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = model.ropes[0].at(0, 7) if model.ropes else None
    ours = layer(x_TD[None], Step(rotation=rotation))[0]
    oracle = simple_latent_attention(layer, x_TD, layer.config, eps=1e-5)
    torch.testing.assert_close(ours, oracle, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", [*MLA_NAMES, "mla_simple_nope"])
@pytest.mark.parametrize("absorb", [True, False])
@torch.no_grad()
def test_absorbed_decoding_equals_expanded(name, absorb, monkeypatch):
    model = build(config_of(VARIANTS[name]), seed=1)
    ids = ids_of(2, 12)
    full = model(ids).logits
    calls = []
    for layer_class in (LatentAttention, SimpleLatentAttention):
        monkeypatch.setattr(layer_class, "_absorbing_is_cheaper", lambda *_: calls.append(absorb) or absorb)
    cache = model.new_cache(2, 12)
    pieces = [
        model(ids[:, a:b], cache=cache).logits for a, b in ((0, 5), (5, 9), (9, 10), (10, 11), (11, 12))
    ]
    torch.testing.assert_close(torch.cat(pieces, 1), full, atol=1e-5, rtol=0)
    assert len(calls) == 5 * 2


def test_absorbing_is_chosen_for_one_token_after_a_long_text():
    layer = build(config_of(VARIANTS["mla"])).layers[0].mixer
    assert layer._absorbing_is_cheaper(1, 64)
    # Scores over a wide latent cost more than expanding it once for many queries.
    wide = build(config_of(example(MIXERS["mla"], kv_latent_dim=64))).layers[0].mixer
    assert not wide._absorbing_is_cheaper(64, 64)


@pytest.mark.parametrize("q_latent_dim", [None, 12])
@torch.no_grad()
def test_mla_equals_deepseek_v3(q_latent_dim):
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    mixer = example(MIXERS["mla"], q_latent_dim=q_latent_dim, v_head_dim=6, kv_latent_dim=12)
    config = config_of(mixer, norm={"eps": 1e-6}, tie_embeddings=False)
    model = build(config, seed=5).eval()
    hf_config = DeepseekV3Config(
        vocab_size=config.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        first_k_dense_replace=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=q_latent_dim,
        kv_lora_rank=12,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=6,
        n_group=1,
        topk_group=1,
        rms_norm_eps=1e-6,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = DeepseekV3ForCausalLM(hf_config).eval()
    # Their rotated parts come in interleaved pairs (2i, 2i+1), ours as halves (i, i + R/2).
    interleaved = torch.arange(8).view(2, 4).t().flatten()
    per_head = torch.cat([torch.cat((torch.arange(8), 8 + interleaved)) + 16 * h for h in range(4)])
    query = {"q_proj": "q"} if q_latent_dim is None else {"q_a_proj": "q_down", "q_b_proj": "q"}
    names = {**query, "kv_a_proj_with_mqa": "kv_down", "kv_b_proj": "kv_up", "o_proj": "o"}
    names |= {"kv_a_layernorm": "latent_norm"}
    names |= {} if q_latent_dim is None else {"q_a_layernorm": "q_latent_norm"}
    source = model.state_dict()
    weights = {
        "model.embed_tokens.weight": source["embed.weight"],
        "model.norm.weight": source["final_norm.weight"],
        "lm_head.weight": source["lm_head.weight"],
    }
    for i in range(2):
        here, there = f"layers.{i}.", f"model.layers.{i}."
        for theirs_name, ours_name in names.items():
            weight = source[f"{here}mixer.{ours_name}.weight"]
            if ours_name == "q":
                weight = weight[per_head]
            if ours_name == "kv_down":
                weight = weight[torch.cat((torch.arange(12), 12 + interleaved))]
            weights[f"{there}self_attn.{theirs_name}.weight"] = weight
        for part in ("gate", "up", "down"):
            weights[f"{there}mlp.{part}_proj.weight"] = source[f"{here}ffn.{part}.weight"]
        weights[f"{there}input_layernorm.weight"] = source[f"{here}mixer_norm_in.weight"]
        weights[f"{there}post_attention_layernorm.weight"] = source[f"{here}ffn_norm_in.weight"]
    theirs.load_state_dict(weights, strict=True)
    ids = ids_of(2, 20)
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)
