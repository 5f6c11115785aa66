"""Conversion from and to transformers: same weights, same logits, both ways."""

import pytest
import torch
from models_cases import config_of, ids_of

from models import build, from_hf, preset, to_hf
from models.decoder import initialise

transformers = pytest.importorskip("transformers")

CLASSES = {
    "smollm-tiny": "LlamaForCausalLM",
    "qwen3-tiny": "Qwen3ForCausalLM",
    "olmo2-tiny": "Olmo2ForCausalLM",
}


def random_model(config, seed=0):
    """Weights wide enough that a wrong rotation or norm shows, and norm weights that are not 1."""
    model = build(config.replace(init={"std": 0.1}), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_logits_and_cached_decoding_agree_both_ways(name, tied):
    model = random_model(preset(name, tie_embeddings=tied))
    theirs = to_hf(model)
    assert type(theirs).__name__ == CLASSES[name]
    ids = ids_of(2, 24, vocab=512)
    logits = theirs(ids).logits
    assert logits.std() > 0.1
    torch.testing.assert_close(model(ids).logits, logits, atol=1e-5, rtol=0)

    back = from_hf(theirs)
    assert back.config == model.config
    assert all(
        torch.equal(a, b)
        for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True)
    )
    cache, their_cache, start = back.new_cache(2, 24), None, 0
    for stop in (9, 12, 13, 14, 24):
        ours = back(ids[:, start:stop], cache=cache).logits
        out = theirs(ids[:, start:stop], past_key_values=their_cache, use_cache=True)
        their_cache, start = out.past_key_values, stop
        torch.testing.assert_close(ours, out.logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_padded_batches_agree():
    model = random_model(preset("smollm-tiny"))
    theirs = to_hf(model)
    ids, mask = ids_of(2, 16, vocab=512), torch.ones(2, 16, dtype=torch.long)
    mask[0, :5] = 0
    ours = model(ids, mask).logits
    torch.testing.assert_close(ours[0, 5:], theirs(ids, attention_mask=mask).logits[0, 5:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_exported_folder_reloads_equal(tmp_path):
    model = random_model(preset("qwen3-tiny"))
    to_hf(model).save_pretrained(tmp_path)
    reloaded = from_hf(transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    ids = ids_of(1, 12, vocab=512)
    assert torch.equal(reloaded(ids).logits, model(ids).logits)


@torch.no_grad()
def test_a_model_of_theirs_with_other_widths():
    config = transformers.Qwen3Config(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=16,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        initializer_range=0.1,
    )
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    ids = ids_of(2, 20, vocab=64)
    torch.testing.assert_close(from_hf(theirs)(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)


def test_what_does_not_convert_is_refused_by_name():
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=16)
    )
    with pytest.raises(
        ValueError, match=r"GPT2LMHeadModel cannot be converted.*LlamaForCausalLM.*Olmo2ForCausalLM"
    ):
        from_hf(gpt2)
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(vocab_size=16, attention_bias=True, rope_parameters=scaled, **small)
    with pytest.raises(ValueError, match=r"attention_bias=True.*rope_parameters="):
        from_hf(transformers.LlamaForCausalLM(config))


@pytest.mark.parametrize(
    "changes",
    [
        {"mixer": {"kind": "mha", "n_heads": 4, "window": 8}},
        {"mixer": {"kind": "mla_simple", "n_heads": 4, "latent_dim": 8}},
        {"mixer": {"kind": "mha", "n_heads": 4}, "norm_placement": "sandwich"},
        {"mixer": {"kind": "mha", "n_heads": 4}, "ffn": {"kind": "gelu", "d_ff": 8}},
        {"mixer": {"kind": "mha", "n_heads": 4}, "norm": {"kind": "layernorm"}},
        {"mixer": {"kind": "mha", "n_heads": 3, "head_dim": 16}},
        {"mixer": {"kind": "mha", "n_heads": 4, "bias": True}},
        {"mixer": {"kind": "mha", "n_heads": 4, "position": "nope"}},
        {"mixer": {"kind": "mha", "n_heads": 4}, "positions": "learned"},
        {"mixer": {"kind": "mha", "n_heads": 4}, "embedding_norm": True},
    ],
)
def test_what_transformers_lacks_is_refused(changes):
    with pytest.raises(ValueError, match=r"no transformers class for mixer .* what converts: mha or gqa"):
        to_hf(build(config_of(**changes)))


def test_dtype_is_kept():
    model = build(preset("smollm-tiny")).bfloat16()
    theirs = to_hf(model)
    assert theirs.dtype == torch.bfloat16
    assert from_hf(theirs).embed.weight.dtype == torch.bfloat16
    initialise(model, seed=1)
    assert not torch.equal(model.embed.weight, theirs.model.embed_tokens.weight)  # copied, not shared
