"""Likelihoods of texts that begin alike: those of every text by itself, whatever is shared, however rows are put."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.evaluate import likelihood
from fabric.evaluate.likelihood import Request, fitted, likelihoods
from models import Cache, ModelConfig, build

VOCAB = 13
MIXERS = {
    "gqa": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2},
    "window": {"kind": "mha", "n_heads": 4, "window": 4},
    "mla": {
        "kind": "mla",
        "n_heads": 4,
        "kv_latent_dim": 8,
        "qk_nope_dim": 8,
        "qk_rope_dim": 8,
        "v_head_dim": 8,
    },
    "nope": {"kind": "mha", "n_heads": 4, "position": "nope"},
}


def model_of(mixer, **more):
    body = {"vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "max_seq_len": 24, "mixer": mixer, **more}
    return build(
        ModelConfig.model_validate({**body, "ffn": {"kind": "swiglu", "d_ff": 48}, "init": {"std": 0.3}})
    )


MODELS = {name: model_of(mixer).eval() for name, mixer in MIXERS.items()}
MODELS["conv"] = model_of(MIXERS["gqa"], short_conv=3).eval()
MODELS["learned"] = model_of(MIXERS["nope"], positions="learned").eval()


@pytest.fixture(params=["packed", "cached"])
def worth(request, monkeypatch):
    """Whether what texts begin with shares a pass with them, or has one of its own."""
    if request.param == "cached":
        monkeypatch.setattr(likelihood, "WORTH_LENGTH", 2)
        monkeypatch.setattr(likelihood, "WORTH_TOKENS", 4)


def by_itself(model, request):
    """From the whole text's logits, in one forward pass of its own."""
    ids = torch.tensor([*request.context, *request.continuation])
    with torch.inference_mode():
        log_p_TV = model(ids[None, :-1]).logits[0].double().log_softmax(-1)
    places = range(len(request.context) - 1, len(ids) - 1)
    nats = sum(float(log_p_TV[t, ids[t + 1]]) for t in places)
    return nats, all(int(log_p_TV[t].argmax()) == ids[t + 1] for t in places)


def agree(model, requests, **options):
    found = likelihoods(model, requests, **options)
    for request, one in zip(requests, found, strict=True):
        nats, greedy = by_itself(model, request)
        assert one.nats == pytest.approx(nats, abs=2e-5), request
        assert one.is_greedy == greedy, request


def shared(n, seed=0):
    """A head in front of all, contexts of a few words, options of one to three tokens, some of them the same."""
    rng = random.Random(seed)
    head = tuple(rng.randrange(VOCAB) for _ in range(7))
    found = []
    for _ in range(n):
        context = head + tuple(rng.randrange(3) for _ in range(rng.randrange(1, 6)))
        options = [tuple(rng.randrange(3) for _ in range(rng.randrange(1, 4))) for _ in range(3)]
        found += [Request(context, option) for option in options]
    return found


@pytest.mark.parametrize("rows", [1, 7, 32])
@pytest.mark.parametrize("name", MODELS)
def test_every_text_has_the_likelihood_it_has_by_itself(name, rows, worth):
    agree(MODELS[name], shared(20), rows=rows)


def test_they_do_not_depend_on_how_rows_are_put_together(worth):
    requests = shared(60)
    one, some, many = ([r.nats for r in likelihoods(MODELS["gqa"], requests, rows=n)] for n in (1, 7, 32))
    assert some == pytest.approx(one, abs=1e-5)
    assert many == pytest.approx(one, abs=1e-5)


TEXT = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.builds(Request, TEXT, TEXT), max_size=12),
    st.integers(1, 5),
    st.sampled_from([1, 8, 4096]),
    st.sampled_from([1, 2**29]),
    st.sampled_from([(1, 1), (2, 3), (32, 1024)]),
)
def test_any_requests(requests, rows, tokens, cache_bytes, worth):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "WORTH_LENGTH", worth[0])
        patch.setattr(likelihood, "WORTH_TOKENS", worth[1])
        patch.setattr(likelihood, "TOKENS", tokens)
        patch.setattr(likelihood, "CACHE_BYTES", cache_bytes)
        agree(MODELS["window"], requests, rows=rows)


def test_what_is_shared_is_computed_once(monkeypatch, worth):
    """A head of seven, two contexts of three, and the first tokens of two options each."""
    model, seen = MODELS["gqa"], []
    whole = type(model).hidden

    def counted(self, ids_BT, *rest, **options):
        seen.append(ids_BT.numel())
        return whole(self, ids_BT, *rest, **options)

    monkeypatch.setattr(type(model), "hidden", counted)
    head = (1, 2, 3, 4, 5, 6, 7)
    contexts = [(*head, 0, 1, 2), (*head, 3, 1, 2)]
    agree(model, [Request(c, o) for c in contexts for o in ((1, 9, 9), (2, 9, 9))])
    assert sum(seen) == 7 + 2 * 3 + 4 * 2


def test_many_equal_texts_are_one_row():
    """Too short for a pass of their own, and nothing tells them apart: the search for a beginning once had no end."""
    agree(MODELS["gqa"], [Request((1,) * 18, (2, 3))] * 60 + [Request((1,) * 18, (2, 4))])


def test_keys_and_values_stay_within_their_bytes(monkeypatch):
    """A long head before many texts: each row of a pass would have a copy of it."""
    model, held = MODELS["gqa"], []
    taken = Cache.taken

    def counted(self, rows, capacity):
        found = taken(self, rows, capacity)
        held.append((found.batch_size, found.nbytes()))
        return found

    monkeypatch.setattr(Cache, "taken", counted)
    monkeypatch.setattr(likelihood, "WORTH_LENGTH", 10)
    head = tuple(range(10))
    requests = [Request((*head, i, j, k), (1,)) for i in range(6) for j in range(6) for k in range(3)]
    of_one_row = model.new_cache(1, 13).nbytes()
    monkeypatch.setattr(likelihood, "CACHE_BYTES", 7 * of_one_row)
    agree(model, requests)
    assert max(n for n, _ in held) > 1
    assert max(n_bytes for n, n_bytes in held if n > 1) <= 7 * of_one_row


def test_what_cannot_be_scored_is_refused():
    model = MODELS["gqa"]
    assert likelihoods(model, []) == []
    for request in (Request((), (1,)), Request((1,), ())):
        with pytest.raises(ValueError, match="at least one token of context and one of continuation"):
            likelihoods(model, [request])
    long = Request((1,) * 20, (2,) * 6)
    with pytest.raises(ValueError, match="a text of 25 tokens is longer than the model's 24"):
        likelihoods(model, [long])
    cut = fitted(long, 24)
    assert cut == Request((1,) * 19, (2,) * 6)
    agree(model, [cut])
    with pytest.raises(ValueError, match="an option of 25 tokens does not fit"):
        fitted(Request((1,), (2,) * 25), 24)
    assert fitted(Request((1,), (2,) * 24), 24) == Request((1,), (2,) * 24)
