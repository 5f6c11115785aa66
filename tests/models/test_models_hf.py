"""Same weights, same numbers as transformers, both ways: logits, cached decoding, gradients, generated tokens."""

import pytest
import torch
import torch.nn.functional as F
from hf_cases import CASES, config_of_case, random_model
from models_cases import ids_of

from models import build, from_hf, generate, preset, to_hf
from models.decoder import initialise
from models.hf import FAMILIES, family_of
from models.mixers.mla import LatentAttention

transformers = pytest.importorskip("transformers")

everywhere = pytest.mark.parametrize("name", CASES)
N_TOKENS = 40  # windows are shorter


def pair_of(name, implementation="eager", **changes):
    model = random_model(config_of_case(name, **changes))
    theirs = to_hf(model)
    theirs.set_attn_implementation(implementation)
    return model, theirs


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_every_family_has_a_case():
    assert {family_of(config_of_case(name)).model_type for name in CASES} == {f.model_type for f in FAMILIES}


@everywhere
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_logits_agree(name, implementation):
    model, theirs = pair_of(name, implementation)
    assert type(theirs).__name__ == family_of(model.config).model_class
    ids = ids_of(2, N_TOKENS, vocab=512)
    logits = theirs(ids).logits
    assert logits.std() > 0.1
    close(model(ids).logits, logits)


@pytest.mark.parametrize("name", ["smollm-tiny", "exaone4-hybrid-tiny", "deepseek-v3-tiny"])
@torch.no_grad()
def test_long_texts_agree(name):
    model, theirs = pair_of(name, max_seq_len=1024)
    ids = ids_of(1, 1000, vocab=512)
    close(model(ids).logits, theirs(ids).logits)


@everywhere
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_padded_batches_agree(name, implementation):
    model, theirs = pair_of(name, implementation)
    ids, mask = ids_of(2, N_TOKENS, vocab=512), torch.ones(2, N_TOKENS, dtype=torch.long)
    mask[0, :11] = 0
    ours, logits = model(ids, mask).logits, theirs(ids, attention_mask=mask).logits
    close(ours[0, 11:], logits[0, 11:])
    close(ours[1], logits[1])


@everywhere
@torch.no_grad()
def test_cached_decoding_agrees(name):
    model, theirs = pair_of(name)
    ids = ids_of(2, N_TOKENS, vocab=512)
    full = model(ids).logits
    cache, their_cache, start = model.new_cache(2, N_TOKENS), None, 0
    for stop in (
        9,
        21,
        *range(22, 31),
        N_TOKENS,
    ):  # chunks shorter and longer than the windows, single tokens
        ours = model(ids[:, start:stop], cache=cache).logits
        out = theirs(ids[:, start:stop], past_key_values=their_cache, use_cache=True)
        close(ours, full[:, start:stop])
        close(ours, out.logits)
        their_cache, start = out.past_key_values, stop
    windowed = [(i, m.window) for i, m in enumerate(model.config.mixers) if m.window is not None]
    for i, window in windowed:  # neither remembers more than its window
        assert cache.layers[i].n_slots == window < N_TOKENS
        assert their_cache.layers[i].keys.shape[-2] <= window


@pytest.mark.parametrize("name", [n for n in CASES if config_of_case(n).mixer.kind == "mla"])
@pytest.mark.parametrize("absorb", [True, False])
@torch.no_grad()
def test_absorbed_and_expanded_latent_attention_agree(name, absorb, monkeypatch):
    model, theirs = pair_of(name)
    asked = []
    monkeypatch.setattr(LatentAttention, "_absorbing_is_cheaper", lambda *_: asked.append(absorb) or absorb)
    ids = ids_of(2, N_TOKENS, vocab=512)
    cache = model.new_cache(2, N_TOKENS)
    pieces = [model(ids[:, a:b], cache=cache).logits for a, b in ((0, 20), (20, 39), (39, 40))]
    close(torch.cat(pieces, 1), theirs(ids).logits)
    assert len(asked) == 3 * model.config.n_layers


@everywhere
def test_every_gradient_agrees(name):
    model, theirs = pair_of(name)
    ids = ids_of(2, N_TOKENS + 1, vocab=512)
    for each in (model, theirs):
        logits = each(ids[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    # Their gradients in a model of ours: the same conversion as the weights'.
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    gradients = dict(from_hf(theirs).named_parameters())
    for parameter_name, parameter in model.named_parameters():
        wanted = gradients[parameter_name]
        assert wanted.norm() > 0
        error = (parameter.grad - wanted).norm() / wanted.norm()
        # Softmax does not see what is added to all keys: what is left of their bias' gradient is a small difference.
        assert error <= (1e-4 if parameter_name.endswith("mixer.k.bias") else 1e-5), (parameter_name, error)


@everywhere
def test_config_and_weights_come_back_equal(name):
    model, theirs = pair_of(name)
    back = from_hf(theirs)
    assert back.config == model.config
    assert not back.training
    state = model.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(weight, state[key]) for key, weight in back.state_dict().items())
    again = to_hf(back)
    assert again.config.to_dict() == theirs.config.to_dict()
    assert all(torch.equal(w, theirs.state_dict()[key]) for key, w in again.state_dict().items())


@everywhere
@torch.no_grad()
def test_an_exported_folder_reloads_equal(name, tmp_path):
    model, theirs = pair_of(name)
    theirs.save_pretrained(tmp_path)
    reloaded = from_hf(transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    assert reloaded.config == model.config
    ids = ids_of(1, 30, vocab=512)
    assert torch.equal(reloaded(ids).logits, model(ids).logits)


@everywhere
def test_their_generate_gives_our_greedy_tokens(name):
    model, theirs = pair_of(name)
    prompt, mask = ids_of(2, 11, vocab=512), torch.ones(2, 11, dtype=torch.long)
    mask[0, :4] = 0
    ours = generate(model, prompt, max_new_tokens=20, temperature=0, attention_mask=mask)
    assert torch.equal(ours, theirs.generate(prompt, do_sample=False, max_new_tokens=20, attention_mask=mask))


@torch.no_grad()
def test_the_layout_without_interleaved_pairs_is_read_too():
    model, theirs = pair_of("deepseek-v3-tiny")
    settings = {**theirs.config.to_dict(), "rope_interleave": False}
    other = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**settings)).eval()
    other.load_state_dict(theirs.state_dict())
    ids = ids_of(2, N_TOKENS, vocab=512)
    logits = other(ids).logits
    assert (logits - model(ids).logits).abs().max() > 1e-3
    close(from_hf(other)(ids).logits, logits)


def test_dtype_and_mode_are_kept_and_weights_are_copied():
    model = random_model(preset("smollm-tiny")).bfloat16().train()
    theirs = to_hf(model)
    assert theirs.dtype == torch.bfloat16
    assert theirs.training
    assert from_hf(theirs).embed.weight.dtype == torch.bfloat16
    assert from_hf(theirs).training
    initialise(model, seed=1)
    assert not torch.equal(model.embed.weight, theirs.model.embed_tokens.weight)


def test_in_bf16_the_rotations_frequencies_stay_fp32_as_when_loaded():
    theirs = to_hf(build(preset("smollm-tiny")).bfloat16())
    assert theirs.dtype == theirs.config.dtype == torch.bfloat16
    assert theirs.model.rotary_emb.inv_freq.dtype == torch.float32
