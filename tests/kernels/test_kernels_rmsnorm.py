"""RMSNorm backends against the definition, forward and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_kit import needs_native

from kernels.rmsnorm import rms_norm


def with_gradients(backend, x, weight, grad, eps):
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    y = rms_norm(*leaves, eps, backend=backend)
    return [y, *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("backend", ["torch"])
@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    shape=st.sampled_from([(3,), (5, 8), (2, 3, 17), (2, 4, 3, 16), (1, 1)]),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    offset=st.sampled_from([0.0, 2.0]),
    eps=st.sampled_from([1e-6, 0.1]),
    seed=st.integers(0, 5),
)
def test_equals_the_definition(backend, shape, scale, offset, eps, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) + offset) * scale
    weight = torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    for got, wanted in zip(
        with_gradients(backend, x, weight, grad, eps),
        with_gradients("reference", x, weight, grad, eps),
        strict=True,
    ):
        # Where terms cancel, rounding is relative to these: about |grad * weight| / rms(x).
        atol = 1e-12 / scale + 1e-9 * wanted.abs().max().item()
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=atol)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strided", [False, True])
def test_low_precision_and_strided_inputs(dtype, strided):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 32, generator=generator).to(dtype)
    x = x.transpose(0, 1)[..., ::2] if strided else x
    weight, grad = (
        torch.rand(x.shape[-1], generator=generator),
        torch.randn(x.shape, generator=generator).to(dtype),
    )
    for got, wanted in zip(
        with_gradients("cpu", x, weight, grad, 1e-5),
        with_gradients("reference", x, weight, grad, 1e-5),
        strict=True,
    ):
        assert got.dtype == wanted.dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def test_backward_keeps_the_input_and_one_number_a_row():
    x, kept = torch.randn(7, 16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        rms_norm(x, torch.ones(16, requires_grad=True))
    assert sorted(kept) == [7, 16, 7 * 16]


def test_without_gradients_it_is_the_same():
    x, weight = torch.randn(5, 8), torch.rand(8, requires_grad=True)
    with torch.no_grad():
        quiet = rms_norm(x, weight)
    assert torch.equal(quiet, rms_norm(x, weight))


def test_unknown_backend():
    with pytest.raises(ValueError, match="use one of auto, reference, cpu, torch"):
        rms_norm(torch.ones(2), torch.ones(2), backend="cuda")
