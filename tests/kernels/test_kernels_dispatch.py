"""Kernels are given only what they are right for; the rest is PyTorch's, which broadcasts or refuses."""

import subprocess
import sys

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from kernels_kit import needs_native
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fabric.train import loss
from kernels import native
from kernels.attention import attention
from kernels.cross_entropy import cross_entropy_
from kernels.linear import linears
from kernels.rmsnorm import rms_norm
from kernels.rotary import rotary
from kernels.swiglu import swiglu

R = torch.randn

# What ended the process, or wrote where it must not, is run in one of its own: case by case, each prints a line.
HARMFUL = """
import torch
from kernels.attention import attention
from kernels.cross_entropy import cross_entropy_
from kernels.linear import linears
from kernels.rmsnorm import rms_norm
from kernels.rotary import rotary
from kernels.swiglu import swiglu
from torch._subclasses import FakeTensorMode

R = torch.randn

def say(call):
    try:
        print(call(), flush=True)
    except (RuntimeError, ValueError) as error:
        print(type(error).__name__, flush=True)

def shapes(*tensors):
    return [tuple(x.shape) for x in tensors]

torch.set_grad_enabled(False)
say(lambda: shapes(*linears(R(0, 64), R(32, 64), R(16, 64))))
say(lambda: shapes(*linears(R(2, 0), R(32, 0))))
say(lambda: cross_entropy_(R(800, 33), torch.zeros(3, dtype=torch.long)))
say(lambda: shapes(swiglu(R(3000000), R(1))))
say(lambda: linears(R(2, 64).half(), R(32, 64).half(), backend="cpu"))
say(lambda: rotary(R(1, 500, 2, 8), R(3, 1, 8), R(3, 1, 8)))
with FakeTensorMode():
    say(lambda: shapes(rms_norm(R(3, 16), torch.ones(16)), swiglu(R(3, 4), R(3, 4)), *linears(R(3, 4), R(5, 4))))
with torch.device("meta"):
    x, w = torch.ones(3, 16, device="cpu"), torch.ones(16, device="cpu")
    say(lambda: rms_norm(x, w).device)
    say(lambda: cross_entropy_(x, torch.zeros(3, dtype=torch.long, device="cpu")).device)
    say(lambda: rotary(x.view(1, 3, 1, 16), x.view(3, 1, 16), x.view(3, 1, 16)).device)
torch.set_grad_enabled(True)
for dtype in (torch.bfloat16, torch.float64):
    torch.set_default_dtype(dtype)
    x, w = torch.ones(3000, 65, dtype=torch.float32, requires_grad=True), torch.ones(65, dtype=torch.float32)
    y = rms_norm(x, w.requires_grad_(), eps=1e-5)
    y.sum().backward()
    print(y.dtype, w.grad.dtype, round(w.grad.mean().item(), 1))
    print(cross_entropy_(x.detach(), torch.zeros(3000, dtype=torch.long)).dtype)
"""
EXPECTED = """
[(0, 32), (0, 16)]
[(2, 32)]
ValueError
[(3000000,)]
ValueError
RuntimeError
[(3, 16), (3, 4), (3, 5)]
cpu
cpu
cpu
torch.float32 torch.float32 3000.0
torch.float32
torch.float32 torch.float32 3000.0
torch.float32
"""


@needs_native
def test_what_could_end_the_process_does_not():
    done = subprocess.run([sys.executable, "-P", "-c", HARMFUL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.split("\n") == EXPECTED.split("\n")[1:]


@pytest.mark.parametrize("shapes", [((100, 64), (1, 64)), ((1, 64), (100, 64)), ((3, 4), (4,))])
def test_swiglu_broadcasts(shapes):
    gate, up = (R(s, requires_grad=True) for s in shapes)
    outs = [swiglu(gate, up), F.silu(gate) * up]
    grads = [torch.autograd.grad(y.square().sum(), (gate, up)) for y in outs]
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(grads[0], grads[1])


def test_silu_at_the_ends_of_fp32():
    gate = torch.tensor([-float("inf"), -3e38, -1e4, -88.1, float("inf"), 3e38] * 3)
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [gate.to(dtype).requires_grad_() for _ in "ab"]
        outs = [swiglu(leaves[0], torch.ones(18, dtype=dtype)), F.silu(leaves[1])]
        grads = [torch.autograd.grad(y.sum(), leaf)[0] for y, leaf in zip(outs, leaves)]
        torch.testing.assert_close(*outs, equal_nan=True, atol=1e-35, rtol=0)
        torch.testing.assert_close(*grads, equal_nan=True, atol=1e-35, rtol=1e-6)


@pytest.mark.parametrize(
    "tables",
    [
        (R(1, 5, 1, 8), R(1, 5, 1, 8)),  # one text's beside three
        (R(5, 1, 8), R(5, 1, 8).bfloat16()),
        (R(5, 2, 8), R(5, 2, 8)),
    ],
)
def test_rotary_tables_are_broadcast_and_cast_as_the_definition_does(tables):
    x = R(3, 5, 2, 8)
    assert torch.equal(rotary(x, *tables), rotary(x, *tables, backend="reference"))


def test_rotary_of_an_odd_width_and_with_gradients_of_tables_is_the_definition():
    x, cos, sin = R(3, 5, 2, 7), R(5, 1, 7), R(5, 1, 7)
    assert torch.equal(rotary(x, cos, sin), rotary(x, cos, sin, backend="reference"))
    assert rotary(R(1, 5, 2, 8), R(5, 1, 8, requires_grad=True), R(5, 1, 8)).requires_grad


@pytest.mark.parametrize(
    "call",
    [
        lambda: rms_norm(R(3, 64), R(8)),
        lambda: linears(R(2, 640), R(32, 8)),
        lambda: cross_entropy_(R(3, 33), torch.zeros(8, dtype=torch.long)),
        lambda: cross_entropy_(R(3, 33), torch.tensor([1.7, 2.0, 3.0])),
        lambda: attention(R(1, 2, 40, 64), R(1, 2, 40, 64), R(1, 2, 40, 64).bfloat16()),
        lambda: attention(R(1, 2, 40, 64), R(1, 2, 40, 64).double(), R(1, 2, 40, 64)),
    ],
)
def test_what_pytorch_refuses_is_refused(call):
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
        call()


@needs_native
@pytest.mark.parametrize(
    "call",
    [
        lambda: linears(R(20, 64), R(32, 64), backend="cpu"),
        lambda: linears(R(2, 64), R(32, 64, requires_grad=True), backend="cpu"),
        lambda: rms_norm(R(3, 64).double(), R(64), backend="cpu"),
        lambda: rotary(R(3, 5, 2, 8).half(), R(5, 1, 8), R(5, 1, 8), backend="cpu"),
        lambda: swiglu(R(10, 64).half(), R(10, 64).half(), backend="cpu"),
        lambda: swiglu(R(10, 64), R(10, 64).bfloat16(), backend="cpu"),
        lambda: cross_entropy_(R(5, 33).double(), torch.zeros(5, dtype=torch.long), backend="cpu"),
        lambda: cross_entropy_(R(33, 5).t(), torch.zeros(5, dtype=torch.long), backend="cpu"),
        lambda: attention(*(R(1, 2, 40, 8).half() for _ in "qkv"), backend="cpu"),
    ],
)
def test_kernels_asked_for_by_name_say_what_they_take(call):
    with pytest.raises(
        ValueError, match="kernel for CPUs does not take .* on cpu; it takes .*backend='auto'"
    ):
        call()


@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa", "cpu"])
@pytest.mark.parametrize(
    ("q", "k", "v", "mask"),
    [
        ((8, 2, 40, 8), (1, 2, 40, 8), (1, 2, 40, 8), None),
        ((1, 2, 40, 8), (1, 2, 40, 8), (1, 2, 80, 8), None),
        ((1, 2, 40, 8), (1, 2, 4, 8), (1, 2, 4, 8), None),
        ((1, 2, 40, 8), (1, 2, 40, 4), (1, 2, 40, 8), None),
        ((1, 4, 40, 8), (1, 4, 40, 8), (1, 2, 40, 8), None),
        ((2, 2, 40, 8), (2, 2, 40, 8), (2, 2, 40, 8), (2, 3)),
        ((2, 2, 40, 8), (2, 2, 40, 8), (2, 2, 40, 8), (1, 40)),
    ],
)
def test_attention_names_shapes_that_do_not_belong_together(backend, q, k, v, mask):
    with pytest.raises(ValueError, match=r"queries \(.*, keys \(.*, values \(.* do not belong together"):
        attention(R(q), R(k), R(v), key_mask_BS=None if mask is None else torch.ones(mask), backend=backend)


@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa", "cpu"])
@pytest.mark.parametrize("window", [0, -3])
def test_attention_refuses_windows_without_a_key(backend, window):
    with pytest.raises(ValueError, match=f"window={window} sees no key"):
        attention(*(R(1, 1, 40, 8) for _ in "qkv"), window=window, backend=backend)


def test_attention_of_huge_windows_and_scores():
    q, k, v = (R(1, 1, 40, 16) for _ in "qkv")
    assert torch.equal(attention(q, k, v, window=2**40), attention(q, k, v))
    low = torch.full((1, 1, 40, 16), 1e18), -1e18 * torch.rand(1, 1, 40, 1).expand(1, 1, 40, 16), v
    torch.testing.assert_close(attention(*low), attention(*low, backend="reference"))


def test_attention_says_that_it_is_differentiable_once():
    if torch.float32 not in native.attention_dtypes():
        pytest.skip("fp32 needs AVX-512")
    q = R(1, 1, 40, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(attention(q, q, q).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "function",
    [
        lambda h: loss.sum_nll_in_chunks(h, torch.eye(11, 8), torch.arange(6)),
        lambda h: rms_norm(h, torch.ones(8)).sum(),
        lambda h: swiglu(h, h).sum(),
        lambda h: swiglu(h.double(), h.double()).sum(),
        lambda h: sum(y.sum() for y in linears(h, h.flatten()[:8].view(1, 8), h[:2])),
    ],
    ids=["loss", "rms_norm", "swiglu", "swiglu elsewhere", "linears"],
)
def test_second_derivatives_are_refused_with_a_constant_gradient_too(function):
    hidden, x = R(6, 8, requires_grad=True), torch.ones((), requires_grad=True)
    (grad,) = torch.autograd.grad(function(hidden * x), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(grad.square().sum(), x)


def test_every_token_of_the_loss_has_one_target():
    with pytest.raises(ValueError, match=r"6 tokens have 9 targets \(shape \(9,\)\)"):
        loss.sum_nll_in_chunks(R(6, 8), R(11, 8), torch.zeros(9, dtype=torch.long), n_rows=6)


@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_cross_entropy_of_large_logits_keeps_its_digits(offset):
    nll = cross_entropy_(torch.full((1, 101), offset), torch.tensor([5]))
    torch.testing.assert_close(nll, torch.tensor([101.0]).log())


def test_rms_norm_of_fp64_with_an_fp32_weight_is_computed_in_fp64():
    x, weight = R(4, 16).double(), R(16)
    torch.testing.assert_close(
        rms_norm(x, weight), rms_norm(x, weight, backend="reference"), rtol=1e-14, atol=0
    )


def elementwise(x):
    """Of x (3, 16): every kernel without one of its own for tracing."""
    angle = torch.arange(24.0).view(3, 1, 8)
    tables = torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1)
    turned = rotary(x.view(1, 3, 1, 16), *tables).view(3, 16)
    return rms_norm(turned, torch.ones(16)) + swiglu(x, x) + sum(linears(x, torch.eye(16), torch.eye(16)))


@pytest.mark.filterwarnings("ignore")
def test_traces_hold_the_operators():
    with torch.no_grad():
        traced, recorded = torch.jit.trace(elementwise, (R(3, 16),)), make_fx(elementwise)(R(3, 16))
        x = R(3, 16)
        torch.testing.assert_close(traced(x), elementwise(x))
        torch.testing.assert_close(recorded(x), elementwise(x))


def test_forward_mode_derivatives_and_functorch_see_the_operators():
    x, tangent = R(3, 16), R(3, 16)
    with torch.no_grad():
        exact = (elementwise(x + 1e-2 * tangent) - elementwise(x - 1e-2 * tangent)) / 2e-2
        with forward_ad.dual_level():
            got = forward_ad.unpack_dual(elementwise(forward_ad.make_dual(x, tangent))).tangent
        torch.testing.assert_close(got, exact, atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(torch.func.jvp(elementwise, (x,), (tangent,))[1], got)
        torch.testing.assert_close(torch.func.vmap(elementwise)(x.expand(2, 3, 16))[1], elementwise(x))
    torch.testing.assert_close(
        torch.func.grad(lambda x: elementwise(x).sum())(x),
        torch.autograd.grad(elementwise(leaf := x.clone().requires_grad_()).sum(), leaf)[0],
    )


def test_attention_of_fake_tensors_has_their_shape():
    with FakeTensorMode(), torch.no_grad():
        assert attention(*(R(1, 2, 40, 8) for _ in "qkv")).shape == (1, 2, 40, 8)
