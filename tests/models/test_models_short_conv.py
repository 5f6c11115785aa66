"""The short convolution in front of a mixer, by itself; what holds of every model is tested with the other variants."""

import pytest
import torch
import torch.nn.functional as F
from models_cases import VARIANTS, config_of, ids_of

from models import build, n_params
from models.mixers.base import Step
from models.short_conv import ShortConv

MHA = VARIANTS["mha"]


@pytest.mark.parametrize("n_taps", [2, 3, 5])
def test_it_is_torchs_depthwise_convolution_padded_on_the_left(n_taps):
    conv = ShortConv(8, n_taps)
    torch.nn.init.normal_(conv.weight)
    x = torch.randn(2, 11, 8)
    want = F.conv1d(F.pad(x.transpose(1, 2), (n_taps - 1, 0)), conv.weight.T[:, None], groups=8)
    torch.testing.assert_close(conv(x, Step()), want.transpose(1, 2), atol=1e-6, rtol=0)


def test_initial_values_are_as_wide_as_torchs_convolutions():
    config = config_of(MHA, short_conv=3, d_model=512, init={"std": 0.02})
    weight = build(config, seed=0).layers[0].short_conv.weight
    assert weight.std().item() == pytest.approx(
        torch.nn.Conv1d(512, 512, 3, groups=512).weight.std().item(), rel=0.1
    )
    assert n_params(config) - n_params(config.replace(short_conv=None)) == 2 * 3 * 512


def test_a_model_without_one_is_what_it_was():
    plain, conv = build(config_of(MHA), seed=2), build(config_of(MHA, short_conv=3), seed=2)
    own = dict(conv.named_parameters())
    assert set(own) - set(dict(plain.named_parameters())) == {f"layers.{i}.short_conv.weight" for i in (0, 1)}
    assert all(torch.equal(p, own[name]) for name, p in plain.named_parameters())


@torch.no_grad()
def test_taken_selected_and_grown_caches_hold_its_state():
    model = build(config_of(MHA, short_conv=4), seed=1).eval()
    ids = ids_of(3, 14)
    full = model(ids).logits
    cache = model.new_cache(3, 6)
    model(ids[:, :6], cache=cache)
    cache.grow(14)
    order = torch.tensor([2, 0])
    taken = cache.taken(order, 14)
    torch.testing.assert_close(model(ids[order, 6:], cache=taken).logits, full[order, 6:], atol=1e-5, rtol=0)
    cache.select(order)
    torch.testing.assert_close(model(ids[order, 6:], cache=cache).logits, full[order, 6:], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="a short convolution keeps no tokens"):
        cache.forget_last(1)


def test_a_cache_that_has_room_for_fewer_tokens_than_taps():
    model = build(config_of(MHA, short_conv=5), seed=1).eval()
    ids = ids_of(1, 3)
    cache = model.new_cache(1, 3)
    with torch.no_grad():
        found = [model(ids[:, t : t + 1], cache=cache).logits for t in range(3)]
        torch.testing.assert_close(torch.cat(found, 1), model(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"short_conv": 1}, "greater than or equal to 2"),
        ({"short_conv": 3, "causal": False}, "one direction only"),
    ],
)
def test_what_it_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        config_of(MHA, **changes)
