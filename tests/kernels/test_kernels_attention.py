"""Attention backends against the definition, forward and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.attention import BACKENDS, attention, reference, sdpa


def inputs(B, H, G, T, S, K, V, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, T, K), (B, G, S, K), (B, G, S, V), (B, H, T, V))
    return [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]


def with_gradients(backend, q, k, v, grad, **options):
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, backend=backend, **options)
    return [out, *torch.autograd.grad(out, leaves, grad)]


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    n_queries=st.integers(1, 17),
    n_earlier=st.integers(0, 9),
    widths=st.sampled_from([(8, 8), (8, 6), (6, 8)]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 3, 40]),
    n_padding=st.integers(0, 6),
    scale=st.sampled_from([None, 0.5]),
)
def test_sdpa_equals_the_definition(heads, n_queries, n_earlier, widths, causal, window, n_padding, scale):
    n_keys = n_queries + n_earlier
    q, k, v, grad = inputs(2, *heads, n_queries, n_keys, *widths)
    mask = None
    if n_padding:
        mask = torch.ones(2, n_keys, dtype=torch.bool)
        mask[0, :n_padding] = False
    options = {"causal": causal, "window": window, "key_mask_BS": mask, "scale": scale}
    for got, wanted in zip(
        with_gradients("sdpa", q, k, v, grad, **options),
        with_gradients("reference", q, k, v, grad, **options),
        strict=True,
    ):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_long_texts_in_fp32(heads, window):
    q, k, v, grad = inputs(1, *heads, 300, 300, 16, 16, dtype=torch.float32)
    for got, wanted in zip(
        with_gradients("auto", q, k, v, grad, window=window),
        with_gradients("reference", q, k, v, grad, window=window),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


def test_definition_by_hand():
    seen = reference.visible_pairs(2, 4, window=2)
    assert seen.tolist() == [[False, True, True, False], [False, False, True, True]]
    mask = torch.tensor([[False, True, True, True], [True, True, True, False]])
    seen = reference.visible_pairs(2, 4, key_mask_BS=mask)[:, 0]
    assert seen[0].tolist() == [[False, True, True, False], [False, True, True, True]]
    assert seen[1].tolist() == [[True, True, True, False], [True, True, True, True]]  # padding sees itself
    q, k, v, _ = inputs(1, 2, 1, 1, 3, 4, 4)
    out, weights = reference.attention(q, k, v)
    scores = torch.stack([(q[0, h, 0] * k[0, 0]).sum(-1) / 2 for h in range(2)])
    torch.testing.assert_close(weights[0, :, 0], scores.softmax(-1))
    torch.testing.assert_close(out[0, :, 0], scores.softmax(-1) @ v[0, 0])


def test_no_mask_is_built_where_none_is_needed():
    q = torch.zeros(1, 2, 5, 4)
    assert sdpa._mask_of(q, 5, True, None, None) == (None, True)
    assert sdpa._mask_of(q, 5, True, 5, None) == (None, True)
    assert sdpa._mask_of(q, 5, False, None, None) == (None, False)
    assert sdpa._mask_of(q[:, :, :1], 9, True, 9, None) == (None, False)
    first, _ = sdpa._mask_of(q, 5, True, 2, None)
    assert sdpa._mask_of(q, 5, True, 2, None)[0] is first


def test_a_mask_first_made_in_inference_mode_serves_training():
    sdpa._kept_mask.cache_clear()
    q, k, v, grad = inputs(1, 2, 2, 6, 6, 4, 4, dtype=torch.float32)
    with torch.inference_mode():
        attention(q, k, v, window=3)
    made_in_inference = with_gradients("sdpa", q, k, v, grad, window=3)
    sdpa._kept_mask.cache_clear()
    fresh = with_gradients("sdpa", q, k, v, grad, window=3)
    assert all(torch.equal(a, b) for a, b in zip(made_in_inference, fresh))


def test_errors():
    q, k, v, _ = inputs(1, 4, 3, 2, 2, 4, 4)
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key/value heads"):
        attention(q, k, v)
    with pytest.raises(ValueError, match=f"use one of {', '.join(BACKENDS)}"):
        attention(q, q, q, backend="flash")
