"""What must hold for every mixer, norm placement, window and query/key norm."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_cases import (
    FFNS,
    MIXERS,
    PATTERNS,
    PLACEMENTS,
    QK_NORMS,
    VARIANTS,
    VOCAB,
    config_of,
    example,
    ids_of,
)

from models import build
from models.cost import state_bytes

WINDOWS = (None, 5)
GRID = [
    pytest.param(
        {**example(part), "qk_norm": qk_norm, "window": window},
        placement,
        id=f"{kind}-{placement}-w{window}-{qk_norm}",
    )
    for kind, part in MIXERS.items()
    for placement in PLACEMENTS
    for window in WINDOWS
    for qk_norm in (QK_NORMS if "qk_norm" in part.model_fields else ("none",))
] + [
    pytest.param({**VARIANTS[name], "window": window}, "pre", id=f"{name}-w{window}")
    for name in VARIANTS
    if name not in MIXERS
    for window in (WINDOWS if name not in PATTERNS else (None,))  # their entries have windows of their own
]
everywhere = pytest.mark.parametrize(("mixer", "placement"), GRID)
windowed = pytest.mark.parametrize(("mixer", "placement"), [p for p in GRID if p.values[0].get("window")])
positioned = pytest.mark.parametrize(
    ("mixer", "placement"), [p for p in GRID if p.values[0].get("position") != "nope"]
)


def model_of(mixer, placement="pre"):
    return build(config_of(mixer, norm_placement=placement), seed=1).eval()


@everywhere
@torch.no_grad()
def test_no_logit_before_a_changed_token_changes(mixer, placement):
    model = model_of(mixer, placement)
    ids = ids_of(2, 24)
    before = model(ids).logits
    for t in (0, 7, 23):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCAB
        difference = (model(changed).logits - before).abs().amax(dim=(0, 2))
        assert (difference[:t] == 0).all()
        assert difference[t] > 1e-3


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("window", [None, 70])
@torch.no_grad()
def test_causality_across_the_blocks_of_a_long_text(name, window):
    model = build(config_of({**VARIANTS[name], "window": window}, max_seq_len=400), seed=1)
    ids = ids_of(1, 330)
    changed = ids.clone()
    changed[:, 200] = (changed[:, 200] + 1) % VOCAB
    difference = (model(changed).logits - model(ids).logits).abs().amax(dim=(0, 2))
    assert (difference[:200] == 0).all()
    assert difference[200] > 1e-3


@positioned
@torch.no_grad()
def test_order_of_earlier_tokens_matters(mixer, placement):
    model = model_of(mixer, placement)
    ids = ids_of(1, 24)
    ids[0, 20], ids[0, 22] = 3, 4
    swapped = ids.clone()
    swapped[0, 20], swapped[0, 22] = 4, 3
    assert (model(ids).logits[0, -1] - model(swapped).logits[0, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["gqa_nope", "mla_simple_nope"])
@torch.no_grad()
def test_nope_ignores_order_in_one_layer(name):
    model = build(config_of(VARIANTS[name], n_layers=1), seed=1)
    ids = ids_of(1, 24)
    swapped = ids.clone()
    swapped[0, 5], swapped[0, 9] = ids[0, 9], ids[0, 5]
    assert not torch.equal(ids, swapped)
    assert (model(ids).logits[0, -1] - model(swapped).logits[0, -1]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["mha_nope", "mla_simple_nope", "gqa"])
@pytest.mark.parametrize("window", WINDOWS)
@torch.no_grad()
def test_learned_positions_give_order_and_are_counted_from_the_first_real_token(name, window):
    config = config_of({**VARIANTS[name], "window": window}, positions="learned", embedding_norm=True)
    model = build(config, seed=1).eval()
    ids = ids_of(2, 16)
    swapped = ids.clone()
    ids[0, 13], ids[0, 14] = 3, 4
    swapped[0, 13], swapped[0, 14] = 4, 3
    full = model(ids).logits
    assert (full[0, -1] - model(swapped).logits[0, -1]).abs().max() > 1e-3
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    alone = model(ids[:1, 6:]).logits
    torch.testing.assert_close(model(ids, mask).logits[:1, 6:], alone, atol=1e-5, rtol=0)
    for padding, want in ((None, full), (mask, alone)):
        cache = model.new_cache(2, 16)
        pieces = [model(ids[:, :9], None if padding is None else padding[:, :9], cache=cache).logits]
        pieces += [model(ids[:, t : t + 1], cache=cache).logits for t in range(9, 16)]
        decoded = torch.cat(pieces, dim=1)
        torch.testing.assert_close(decoded[: len(want), -want.shape[1] :], want, atol=1e-5, rtol=0)


@windowed
@torch.no_grad()
def test_window_hides_what_is_outside(mixer, placement):
    model = model_of(mixer, placement)
    ids = ids_of(1, 24)
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCAB
    difference = (model(ids).logits - model(changed).logits).abs().amax(dim=(0, 2))
    reach = 2 * (mixer["window"] - 1 + (mixer.get("short_conv") or 1) - 1)  # of two layers
    assert (difference[reach + 1 :] == 0).all()
    assert difference[reach] > 0


@everywhere
@torch.no_grad()
def test_cached_decoding_equals_full_forward(mixer, placement):
    model = model_of(mixer, placement)
    ids = ids_of(2, 24)
    full = model(ids).logits
    cache = model.new_cache(2, 24)
    pieces = [model(ids[:, a:b], cache=cache).logits for a, b in ((0, 9), (9, 12), (12, 18))]
    pieces += [model(ids[:, t : t + 1], cache=cache).logits for t in range(18, 24)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, atol=1e-5, rtol=0)
    assert cache.nbytes() == 2 * state_bytes(model.config, 24, dtype_bytes=4)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    name=st.sampled_from(sorted(VARIANTS)),
    window=st.sampled_from([None, 1, 3, 8]),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    padding=st.integers(0, 4),
)
@torch.no_grad()
def test_any_split_of_a_text_into_chunks(name, window, chunks, padding):
    model = model_of({**VARIANTS[name], "window": window})
    n = sum(chunks) + padding
    ids = ids_of(2, n)
    mask = torch.ones(2, n, dtype=torch.long)
    mask[0, :padding] = 0
    alone = model(ids[:1, padding:]).logits
    cache = model.new_cache(2, n)
    start, pieces = 0, []
    for size in [padding + chunks[0], *chunks[1:]]:
        given_mask = mask[:, : start + size] if start % 2 else mask[:, start : start + size]
        pieces.append(model(ids[:, start : start + size], given_mask, cache=cache).logits)
        start += size
    torch.testing.assert_close(torch.cat(pieces, 1)[:1, padding:], alone, atol=1e-5, rtol=0)


@everywhere
@torch.no_grad()
def test_left_padding_changes_nothing(mixer, placement):
    model = model_of(mixer, placement)
    ids = ids_of(2, 16)
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    alone = model(ids[:1, 6:]).logits
    padded = model(ids, mask).logits
    assert torch.isfinite(padded).all()
    torch.testing.assert_close(padded[:1, 6:], alone, atol=1e-5, rtol=0)
    cache = model.new_cache(2, 16)
    pieces = [model(ids[:, :9], mask[:, :9], cache=cache).logits]
    pieces += [model(ids[:, t : t + 1], cache=cache).logits for t in range(9, 16)]
    torch.testing.assert_close(torch.cat(pieces, dim=1)[:1, 6:], alone, atol=1e-5, rtol=0)


@everywhere
def test_gradients_reach_every_parameter_and_no_layer_shares_its_mixer(mixer, placement):
    model = model_of(mixer, placement)
    assert len({id(layer.mixer) for layer in model.layers}) == model.config.n_layers
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages)
    model(ids_of(2, 12)).logits.logsumexp(-1).mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@everywhere
@torch.no_grad()
def test_attentions_are_those_used(mixer, placement):
    model = model_of(mixer, placement)
    ids = ids_of(2, 12)
    shown = model(ids, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(shown.logits, model(ids).logits, atol=1e-5, rtol=0)
    assert len(shown.attentions) == 2
    weights = shown.attentions[1]
    assert weights.shape == (2, 4, 12, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 12))
    assert (weights.triu(1) == 0).all()
    if mixer.get("window"):
        assert (weights.tril(-mixer["window"]) == 0).all()


@pytest.mark.parametrize("kind", FFNS)
def test_every_ffn_learns_and_keeps_causality(kind):
    model = build(config_of(VARIANTS["mha"], ffn=example(FFNS[kind])), seed=1)
    ids = ids_of(1, 12)
    out = model(ids).logits
    out.logsumexp(-1).mean().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    changed = ids.clone()
    changed[0, 8] = (changed[0, 8] + 1) % VOCAB
    difference = (model(changed).logits - out).abs().amax(dim=(0, 2))
    assert (difference[:8] == 0).all()
    assert difference[8] > 1e-3
