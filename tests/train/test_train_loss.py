import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from train_kit import make_trial

import models
from fabric.train import loss
from kernels.cross_entropy import IGNORED


def inputs(n, d, v, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(v, d, generator=g).to(dtype).requires_grad_()
    targets = torch.randint(0, v, (n,), generator=g)
    targets[::5] = IGNORED
    return hidden, weight, targets


@settings(deadline=None, derandomize=True, max_examples=40)
@given(n=st.integers(1, 40), v=st.integers(2, 50), rows=st.integers(1, 50))
def test_chunks_equal_torch_cross_entropy(n, v, rows):
    hidden, weight, targets = inputs(n, 7, v, dtype=torch.float64)
    want = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    want_grads = torch.autograd.grad(3 * want, (hidden, weight))
    got = loss.sum_nll_in_chunks(hidden, weight, targets, n_rows=rows)
    got_grads = torch.autograd.grad(3 * got, (hidden, weight))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(got_grads, want_grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chunks_under_autocast_are_as_good_as_the_plain_path(dtype):
    hidden, weight, targets = inputs(64, 32, 100)
    exact = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, targets), (hidden, weight))
    with torch.autocast("cpu", dtype=dtype):
        plain = F.cross_entropy(F.linear(hidden, weight).float(), targets)
        chunked = loss.sum_nll_in_chunks(hidden, weight, targets, 7) / (targets != IGNORED).sum()
    assert chunked.item() == pytest.approx(plain.item(), rel=1e-5)
    theirs, ours = (torch.autograd.grad(x, (hidden, weight)) for x in (plain, chunked))
    for want, plain_grad, grad in zip(exact, theirs, ours):
        assert grad.dtype == torch.float32
        assert (grad - want).norm() <= 1.5 * (plain_grad - want).norm() + 1e-6


def test_chunks_have_the_loss_and_gradients_of_the_whole(prepared, monkeypatch):
    trial = make_trial(*prepared)
    ids = torch.randint(0, trial.model.vocab_size, (3, 17), generator=torch.Generator().manual_seed(3))
    model = models.build(trial.model, 0)

    def gradients():
        model.zero_grad()
        total = loss.sum_nll(model, ids[:, :-1], ids[:, 1:])
        total.backward()
        return total.item(), [p.grad.clone() for p in model.parameters()]

    whole, whole_grads = gradients()
    monkeypatch.setattr(loss, "rows_at_once", lambda vocab_size, width: 10)
    chunked, chunked_grads = gradients()
    assert chunked == pytest.approx(whole, rel=1e-6)
    for ours, theirs in zip(chunked_grads, whole_grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_sum_over_scored_tokens_not_mean_of_means(prepared):
    trial = make_trial(*prepared)
    model = models.build(trial.model, 0)
    ids = torch.randint(0, trial.model.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))
    targets = ids[:, 1:].clone()
    targets[0, 2:] = IGNORED
    total = loss.sum_nll(model, ids[:, :-1], targets)
    per_token = loss.nll_per_token(model, ids[:, :-1], targets)
    assert per_token.shape == (2, 8)
    assert (per_token[0, 2:] == 0).all()
    assert total.item() == pytest.approx(per_token.sum().item(), rel=1e-6)


def test_chunks_never_hold_the_whole_logits():
    hidden, weight, targets = inputs(512, 8, 2000)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Sizes():
        loss.sum_nll_in_chunks(hidden, weight, targets, 64).backward()
    assert max(sizes) == 64 * 2000
