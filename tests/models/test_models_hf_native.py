"""Our own transformers class: same tokens, same weights, whatever the architecture."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models_cases import PLACEMENTS, QK_NORMS, VARIANTS, config_of, ids_of

import models
from models import build
from models.cache import Cache

transformers = pytest.importorskip("transformers")
from models.hf.native import FabricCache, FabricConfig, FabricForCausalLM  # noqa: E402 (needs transformers)

ROOT = Path(__file__).resolve().parents[2]
GELU, LAYERNORM = {"kind": "gelu", "d_ff": 48}, {"kind": "layernorm"}
CONFIGS = {
    **{name: config_of(mixer) for name, mixer in VARIANTS.items()},
    **{f"{name}_window": config_of({**mixer, "window": 5}) for name, mixer in VARIANTS.items()},
    **{p: config_of(VARIANTS["gqa"], norm_placement=p, norm=LAYERNORM, ffn=GELU) for p in PLACEMENTS},
    **{q: config_of({**VARIANTS["mla_simple"], "qk_norm": q}, norm_placement="sandwich") for q in QK_NORMS},
    "pattern": config_of(
        VARIANTS["gqa"],
        mixer_pattern=[{"window": 5}, {"position": "nope", "window": None}, VARIANTS["mla"]],
        n_layers=3,
    ),
    "untied": config_of(VARIANTS["mla"], tie_embeddings=False),
}


def wrapped(name):
    return FabricForCausalLM.wrap(build(CONFIGS[name], seed=1).eval())


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_our_own_loop(name):
    model, ids = wrapped(name), ids_of(3, 9)
    padded = torch.ones_like(ids)
    padded[0, :4] = 0
    for given in (torch.ones_like(ids), padded):
        ours = models.generate(model.model, ids, 24, temperature=0, attention_mask=given)
        theirs = model.generate(ids, attention_mask=given, max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("name", ["gqa_window", "mla", "mla_simple_nope", "pattern", "untied"])
@torch.no_grad()
def test_a_saved_folder_loads_bit_equal_without_a_warning(name, tmp_path, recwarn, caplog):
    model, ids = wrapped(name), ids_of(2, 12)
    transformers.utils.logging.enable_propagation()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    transformers.utils.logging.disable_propagation()
    assert not recwarn.list
    assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
    assert type(loaded) is FabricForCausalLM
    assert not loaded.training
    assert loaded.model.config == model.model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert torch.equal(loaded(ids).logits, model.model(ids).logits)
    assert torch.equal(*(m.generate(ids, max_new_tokens=4, do_sample=False) for m in (loaded, model)))


def test_another_dtype_is_the_same_loaded_or_cast(tmp_path):
    model = wrapped("gqa")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ids = ids_of(1, 8)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model.to(torch.bfloat16)(ids).logits)
    assert loaded(ids).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["gqa_window", "mla_simple", "sandwich"])
def test_beams_sampling_and_speculation_agree_with_decoding_without_a_cache(name):
    model, ids = wrapped(name), ids_of(2, 7)
    ways = [
        {"num_beams": 3, "do_sample": False, "num_return_sequences": 2},
        {"do_sample": True, "top_p": 0.9},
    ]
    if name != "gqa_window":
        ids = ids[:1].repeat(1, 2)
        ways.append({"do_sample": False, "prompt_lookup_num_tokens": 3})
    for way in ways:
        found = []
        for use_cache in (True, "prompt_lookup_num_tokens" in way):
            torch.manual_seed(3)
            plain = way if not found else {k: v for k, v in way.items() if k != "prompt_lookup_num_tokens"}
            found.append(model.generate(ids, max_new_tokens=20, use_cache=use_cache, **plain))
        assert torch.equal(*found), way


@torch.no_grad()
def test_pieces_through_the_cache_are_the_whole_text_and_it_grows(monkeypatch):
    monkeypatch.setattr("models.hf.native.LEAST_ROOM", 4)
    model, ids = wrapped("gqa"), ids_of(2, 40)
    whole, cache, start = model(ids, use_cache=False), None, 0
    assert whole.past_key_values is None
    for stop in (3, 4, 5, 20, 40):
        out = model(ids[:, start:stop], past_key_values=cache, logits_to_keep=2)
        torch.testing.assert_close(out.logits[:, -1], whole.logits[:, stop - 1], atol=1e-5, rtol=0)
        assert out.logits.shape[1] == min(2, stop - start)
        cache, start = out.past_key_values, stop
        assert cache.get_seq_length() == stop
    assert cache.ours.capacity == 40
    with pytest.raises(ValueError, match="65 tokens are more than max_seq_len=64"):
        model(ids_of(2, 25), past_key_values=cache)


@torch.no_grad()
def test_rows_of_a_cache_are_taken_and_tokens_taken_back():
    model = build(CONFIGS["mla"], seed=2).eval()
    ids = ids_of(3, 12)
    cache = model.new_cache(3, 12)
    model(ids[:, :10], cache=cache)
    cache.select(torch.tensor([2, 0]))
    cache.forget_last(2)
    out = model(ids[[2, 0], 8:], cache=cache).logits
    torch.testing.assert_close(out, model(ids[[2, 0]]).logits[:, 8:], atol=1e-5, rtol=0)
    ring = Cache(CONFIGS["gqa_window"], 1, 20)
    ring.n_tokens = 6
    with pytest.raises(
        ValueError, match="a sliding window or a short convolution keeps no tokens outside it"
    ):
        ring.forget_last(1)


def test_loss_gradients_hidden_states_and_attention_weights():
    model, ids = wrapped("mla"), ids_of(2, 10)
    out = model(ids, labels=ids, output_hidden_states=True, output_attentions=True)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    assert [h.shape for h in out.hidden_states] == [(2, 10, 32)] * 3
    assert all(torch.allclose(a.sum(-1), torch.ones(2, 4, 10)) for a in out.attentions)
    assert out.past_key_values is None
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert len(model(ids, return_dict=False)) == 1


def test_a_model_from_its_config_alone_has_our_initial_values():
    config = FabricConfig(model=CONFIGS["mla"].replace(init={"std": 0.2, "depth_scaled": True}).model_dump())
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert float(model.model.embed.weight.detach().std()) == pytest.approx(0.2, rel=0.1)
    assert float(model.model.layers[1].ffn.down.weight.detach().std()) == pytest.approx(0.1, rel=0.1)
    assert torch.equal(model.model.final_norm.weight, torch.ones(32))
    assert torch.equal(model.model.ropes[0].cos, build(CONFIGS["mla"]).ropes[0].cos)


def test_what_it_cannot_do_is_said():
    model, ids = wrapped("gqa_window"), ids_of(1, 12)
    with pytest.raises(ValueError, match="past_key_values is a DynamicCache"):
        model(ids, past_key_values=transformers.DynamicCache())
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        model.generate(ids, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(ids, attention_mask=torch.ones(1, 1, 12, 12))
    with pytest.raises(ValueError, match="exclude each other"):
        model(ids, past_key_values=FabricCache(), use_cache=False)
    with pytest.raises(ValueError, match="vocabulary of 40 cannot be resized to 41"):
        model.resize_token_embeddings(41)
    with pytest.raises(ValueError, match="vocabulary of 40 cannot be resized to 64"):
        model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.resize_token_embeddings(pad_to_multiple_of=8) is model.model.embed
    with pytest.raises(ValueError, match="leave logits_to_keep out"):
        model(ids, labels=ids, logits_to_keep=2)
    with pytest.raises(ValueError, match="names no architecture"):
        FabricForCausalLM(FabricConfig())


def test_the_loss_of_a_part_of_a_batch_is_its_share_of_the_whole():
    model, ids = wrapped("gqa"), ids_of(2, 10)
    torch.testing.assert_close(
        model(ids, labels=ids, num_items_in_batch=36).loss, model(ids, labels=ids).loss / 2
    )


def test_names_written_beside_the_architecture_must_agree_with_it(tmp_path):
    wrapped("gqa").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    body = json.loads(file.read_text())
    file.write_text(json.dumps({**body, "hidden_size": 32, "vocab_size": 40}))
    assert FabricConfig.from_pretrained(tmp_path).hidden_size == 32
    file.write_text(json.dumps({**body, "hidden_size": 33}))
    with pytest.raises(
        ValueError, match=r"hidden_size=33 is not what model has \(32\); leave hidden_size out"
    ):
        FabricConfig.from_pretrained(tmp_path)


@pytest.mark.slow
def test_importing_hf_registers_it_and_training_does_not_import_hf():
    code = (
        "import sys, fabric.runtime.worker, models.decoder\n"
        "assert 'models.hf.native' not in sys.modules and 'transformers' not in sys.modules\n"
        "import models.hf, transformers\n"
        "print(type(transformers.AutoConfig.for_model('fabric', model=None)).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "FabricConfig"
