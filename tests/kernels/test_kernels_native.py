"""The compiled CPU kernels against their definitions, forward and every gradient, and how they are built."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_kit import needs_native

from kernels import native
from kernels.attention import attention
from kernels.cross_entropy import IGNORED, cross_entropy_
from kernels.linear import linears
from kernels.rmsnorm import rms_norm
from kernels.rotary import rotary
from kernels.swiglu import swiglu

pytestmark = needs_native
DTYPES = [torch.float32, torch.bfloat16]
# Relative error (norm of the difference over the norm) against the definition in fp64.
LIMITS = {torch.float32: 3e-6, torch.bfloat16: 2e-2}
many = settings(deadline=None, derandomize=True, max_examples=60)
few = settings(deadline=None, derandomize=True, max_examples=25)


def randoms(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator) for s in shapes]


def error(got, wanted):
    return ((got.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)).item()


def assert_close(function, leaves, dtype, limit=None):
    """Outputs and gradients of `function(*leaves, backend=…)`: "cpu" in a dtype against the definition in fp64."""
    given = [x.to(dtype) for x in leaves]
    results = []
    for backend, kind in (("cpu", dtype), ("reference", torch.float64)):
        inputs = [x.to(kind).requires_grad_() for x in given]
        out = function(*inputs, backend=backend)
        grad = randoms(9, out.shape)[0].to(dtype).to(kind)
        results.append([out, *torch.autograd.grad(out, inputs, grad)])
    for got, wanted in zip(*results, strict=True):
        assert got.dtype == dtype
        assert got.shape == wanted.shape
        assert error(got, wanted) <= (limit or LIMITS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@many
@given(
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (3, 1)]),
    n_queries=st.sampled_from([1, 5, 63, 64, 65, 130]),
    n_earlier=st.sampled_from([0, 1, 70]),
    widths=st.sampled_from([(8, 8), (16, 24), (64, 64), (40, 17), (80, 32)]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 3, 64, 100]),
    n_padding=st.sampled_from([0, 3, 66]),
    scale=st.sampled_from([None, 0.5]),
)
def test_attention(dtype, heads, n_queries, n_earlier, widths, causal, window, n_padding, scale):
    if dtype not in native.attention_dtypes():
        pytest.skip("bf16 needs a matrix unit (AMX), fp32 AVX-512")
    (H, G), (K, V), S = heads, widths, n_queries + n_earlier
    mask = None
    if n_padding:
        mask = torch.ones(2, S, dtype=torch.bool)
        mask[0, : min(n_padding, S - 1)] = False
    # As projections give them: positions before heads in memory.
    shapes = ((2, n_queries, H, K), (2, S, G, K), (2, S, G, V))

    def run(q, k, v, backend):
        options = {"causal": causal, "window": window, "key_mask_BS": mask, "scale": scale}
        return attention(*(x.transpose(1, 2) for x in (q, k, v)), backend=backend, **options)

    # A single visible key has zero gradients to its score: compare what is left of rounding absolutely.
    if window == 1 or S == 1:
        q, k, v = (x.to(dtype) for x in randoms(0, *shapes))
        got, wanted = run(q, k, v, "cpu"), run(q.double(), k.double(), v.double(), "reference")
        assert error(got, wanted) <= LIMITS[dtype]
    else:
        assert_close(run, randoms(0, *shapes), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_does_not_depend_on_threads_or_what_is_not_seen(dtype):
    if dtype not in native.attention_dtypes():
        pytest.skip("bf16 needs a matrix unit (AMX), fp32 AVX-512")
    q, k, v = (x.to(dtype) for x in randoms(0, *[(2, 4, 150, 32)] * 3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = attention(q, k, v, backend="cpu")
        torch.set_num_threads(2)
        two = attention(q, k, v, backend="cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)
    k[:, :, 100:], v[:, :, 100:] = 1e4, -1e4
    assert torch.equal(attention(q, k, v, backend="cpu")[:, :, :100], one[:, :, :100])


def test_attention_compiles_into_a_graph_and_passes_torchs_own_checks():
    from kernels.attention import cpu

    q, k, v = (x.requires_grad_() for x in randoms(0, *[(1, 2, 40, 8)] * 3))
    torch.library.opcheck(cpu._forward, (q, k, v, None, True, 0, 0.3))


def test_attention_refuses_what_it_has_no_kernel_for():
    q = torch.randn(1, 1, 40, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="attention's kernel for CPUs does not take q .* float64 on cpu"):
        attention(q, q, q, backend="cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(
    n=st.sampled_from([1, 15, 16, 33, 5000]), rows=st.integers(1, 3), scale=st.sampled_from([0.1, 1.0, 30.0])
)
def test_swiglu(dtype, n, rows, scale):
    gate, up = randoms(0, (rows, n), (rows, n))
    assert_close(swiglu, [gate * scale, up], dtype)


def test_swiglu_at_the_ends_of_the_range():
    gate = torch.tensor([-1e30, -200.0, -89.0, 0.0, 89.0, 200.0, 1e30] * 3)
    out = swiglu(gate, torch.ones(21), backend="cpu")
    torch.testing.assert_close(out, torch.nn.functional.silu(gate), rtol=1e-5, atol=1e-8)
    assert swiglu(torch.full((16,), float("nan")), torch.ones(16), backend="cpu").isnan().all()


@few
@given(dtype=st.sampled_from([torch.float32, torch.float64]), n=st.integers(1, 40))
def test_swiglu_elsewhere_keeps_as_little(dtype, n):
    gate, up = (x.to(dtype).requires_grad_() for x in randoms(0, (3, n), (3, n)))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        lean = swiglu(gate, up, backend="lean")
    assert kept == [3 * n, 3 * n]
    wanted = swiglu(gate, up, backend="reference")
    grads = [torch.autograd.grad(y.square().sum(), (gate, up)) for y in (lean, wanted)]
    for got, exact in zip(*grads, strict=True):
        torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(
    shape=st.sampled_from([(1, 1, 1, 2), (2, 5, 3, 16), (2, 7, 2, 34), (1, 3, 2, 64)]),
    per_text=st.booleans(),
    strided=st.booleans(),
)
def test_rotary(dtype, shape, per_text, strided):
    B, T, _, R = shape
    angle = randoms(1, (B if per_text else 1, T, 1, R // 2))[0]
    cos = torch.cat((angle.cos(), angle.cos()), -1)
    signed_sin = torch.cat((-angle.sin(), angle.sin()), -1)
    tables = [cos, signed_sin] if per_text else [cos[0], signed_sin[0]]

    def run(x, backend):
        x = x.transpose(1, 2).contiguous().transpose(1, 2) if strided else x
        return rotary(
            x, *(t.to(torch.float32 if backend == "cpu" else x.dtype) for t in tables), backend=backend
        )

    assert_close(run, randoms(0, shape), dtype, 1e-6 if dtype == torch.float32 else 3e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(
    shape=st.sampled_from([(1, 1), (3, 5, 16), (2, 33), (40, 257)]),
    wide_input=st.booleans(),
    offset=st.sampled_from([0.0, 3.0]),
)
def test_rms_norm(dtype, shape, wide_input, offset):
    x, weight, grad = randoms(0, shape, shape[-1:], shape)
    x = (x + offset).to(torch.float32 if wide_input else dtype)
    results = []
    for backend, kind in (("cpu", x.dtype), ("reference", torch.float64)):
        leaves = [
            x.to(kind).requires_grad_(),
            weight.to(torch.float32 if backend == "cpu" else kind).requires_grad_(),
        ]
        y = rms_norm(*leaves, 1e-5, dtype=dtype if backend == "cpu" else kind, backend=backend)
        assert y.dtype == (dtype if backend == "cpu" else kind)
        results.append([y, *torch.autograd.grad(y, leaves, grad.to(dtype).to(y.dtype))])
    for got, wanted in zip(*results, strict=True):
        if shape[-1] > 1:  # a single number is normalised to its sign: no gradient but rounding
            assert error(got, wanted) <= LIMITS[dtype]


def test_rms_norm_in_a_dtype_without_a_kernel_is_pytorchs():
    x, weight = randoms(0, (3, 16), (16,))
    half = rms_norm(x, weight, dtype=torch.float16)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), rms_norm(x, weight), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(n=st.sampled_from([2, 15, 16, 50, 1000]), rows=st.integers(1, 9), scale=st.sampled_from([1.0, 50.0]))
def test_cross_entropy(dtype, n, rows, scale):
    logits = (randoms(0, (rows, n))[0] * scale).to(dtype)
    targets = torch.randint(0, n, (rows,), generator=torch.Generator().manual_seed(1))
    targets[::3] = IGNORED
    ours, exact = logits.clone(), logits.double()
    nll, wanted = (
        cross_entropy_(ours, targets, backend="cpu"),
        cross_entropy_(exact, targets, backend="reference"),
    )
    torch.testing.assert_close(nll.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        ours.double(), exact, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )
    assert (ours[::3] == 0).all()
    untouched = logits.clone()
    assert torch.equal(cross_entropy_(untouched, targets, gradient=False, backend="cpu"), nll)
    assert torch.equal(untouched, logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_cross_entropy_of_what_is_not_finite_is_not_finite(value):
    logits = torch.zeros(2, 40)
    logits[0, 3] = value
    nll = cross_entropy_(logits, torch.tensor([0, 0]), backend="cpu")
    assert not nll[0].isfinite()
    assert nll[1].isfinite()


@pytest.mark.parametrize("target", [-1, 7])
def test_cross_entropy_refuses_targets_outside_the_vocabulary(target):
    with pytest.raises(ValueError, match=f"target {target} is outside the vocabulary of 7"):
        cross_entropy_(torch.zeros(1, 7), torch.tensor([target]), backend="cpu")


BUILD = """
import warnings
warnings.simplefilter("always")
from kernels import native
print(native.library() is not None, native.name(), native.attention_dtypes())
"""


def build_in(folder):
    root = str(Path(native.__file__).parents[1])
    env = {**os.environ, "FABRIC_CACHE": str(folder), "PYTHONPATH": root}
    return subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, env=env)


@pytest.fixture
def asked(monkeypatch):
    """Ask for the library once more, with environment variables set: what came, and what was warned of."""

    def ask(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return native.library.__wrapped__(), [str(w.message) for w in caught]

    return ask


@pytest.mark.parametrize(
    "environment",
    [
        *({"FABRIC_NATIVE": value} for value in ("0", "no", "False", "OFF")),
        {"PATH": "/nonexistent", "CXX": ""},
    ],
)
def test_without_a_compiler_pytorchs_operators_are_used(asked, environment):
    assert asked(**environment) == (None, [])


def test_a_switch_that_says_neither_yes_nor_no_is_refused(asked):
    with pytest.raises(
        ValueError, match="FABRIC_NATIVE='perhaps' says neither yes nor no: use one of 0, no, false"
    ):
        asked(FABRIC_NATIVE="perhaps")


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("/nonexistent/g++", "names no program"),
        ("'g++", "cannot be read"),
        ("false", "could not be compiled with false"),
    ],
)
def test_a_named_compiler_that_is_none_is_said_once(asked, tmp_path, named, why):
    found, said = asked(CXX=named, FABRIC_CACHE=tmp_path)
    assert found is None
    assert len(said) == 1
    assert why in said[0]


def test_a_compiler_may_have_arguments(monkeypatch):
    monkeypatch.setenv("CXX", "sh -c 'exit 0'")
    assert native._compiler() == ["sh", "-c", "exit 0"]


def test_a_cache_folder_that_cannot_be_made_is_named(asked, tmp_path):
    (tmp_path / "file").write_text("")
    found, said = asked(FABRIC_CACHE=tmp_path / "file")
    assert found is None
    assert "cannot be kept in" in said[0]
    assert "set FABRIC_CACHE" in said[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    assert build_in(folder).stdout.startswith("True native-")
    return folder


@pytest.mark.slow
def test_it_is_built_once_into_the_cache_folder_and_found_again(cache):
    (built,) = (cache / "kernels").iterdir()
    before = built.stat().st_mtime_ns
    assert build_in(cache).stdout.startswith("True native-")
    assert built.stat().st_mtime_ns == before


def damaged(cache, folder, how):
    shutil.copytree(cache, folder, dirs_exist_ok=True)
    (file,) = (folder / "kernels").iterdir()
    how(file)
    return file


def as_a_folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "how",
    [
        lambda file: file.write_bytes(file.read_bytes()[:20000]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"garbage" * 5000),
        lambda file: file.write_bytes(b"x" + file.read_bytes()[1:]),
        lambda file: shutil.copy(torch._C.__file__, file),
        as_a_folder,
    ],
    ids=["cut short", "empty", "garbage", "changed", "another's", "a folder"],
)
def test_a_damaged_library_is_not_loaded_but_built_anew(cache, tmp_path, monkeypatch, how):
    file = damaged(cache, tmp_path, how)
    monkeypatch.setenv("FABRIC_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "_built", lambda compiler, sources, target: target)
    assert native._found_or_built(native._compiler()) == file


@pytest.mark.slow
def test_a_damaged_library_is_replaced_without_a_word(cache):
    (file,) = (cache / "kernels").iterdir()
    file.write_bytes(file.read_bytes()[:20000])
    done = build_in(cache)
    assert done.stdout.startswith("True native-")
    assert done.stderr == ""
    assert native._is_whole(file)


def test_a_library_without_the_functions_is_built_anew_and_then_given_up_honestly(
    cache, tmp_path, monkeypatch
):
    damaged(cache, tmp_path, lambda file: None)
    monkeypatch.setenv("FABRIC_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "FUNCTIONS", ("not_there",))
    built = []

    def build(compiler, sources, target):
        built.append(target)
        return native._opened(target)

    monkeypatch.setattr(native, "_built", build)
    with pytest.raises(native._Unusable, match="not_there"):
        native._found_or_built(native._compiler())
    assert len(built) == 1


def test_every_function_called_is_looked_for():
    called = set()
    for file in Path(native.__file__).parent.glob("*/cpu.py"):
        called |= set(re.findall(r'(?:native\.|_)call\(\s*"(\w+)"', file.read_text()))
    assert called == set(native.FUNCTIONS) - {"attention_has_bf16"}


def test_a_compiler_that_fails_is_said_once(asked, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\ntest \"$1\" = --version && exit 0\necho 'out of order' >&2\nexit 1\n")
    compiler.chmod(0o755)
    found, said = asked(CXX=compiler, FABRIC_CACHE=tmp_path)
    assert found is None
    assert len(said) == 1
    assert "could not be compiled" in said[0]
    assert "out of order" in said[0]


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(
    rows=st.integers(1, 8),
    width=st.sampled_from([1, 16, 31, 64, 100]),
    outputs=st.lists(st.integers(1, 70), min_size=1, max_size=3),
)
def test_products_of_few_rows(dtype, rows, width, outputs):
    x, *weights = (t.to(dtype) for t in randoms(0, (rows, 1, width), *[(n, width) for n in outputs]))
    ours = linears(x, *weights, backend="cpu")
    exact = linears(x.double(), *(w.double() for w in weights), backend="reference")
    for got, wanted in zip(ours, exact, strict=True):
        assert got.shape == wanted.shape
        assert error(got, wanted) <= LIMITS[dtype]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_products_that_share_their_input_have_the_gradients_of_single_ones(autocast, count):
    leaves = [t.requires_grad_() for t in randoms(0, (2, 5, 8), *[(6 + n, 8) for n in range(count)])]
    results = []
    for backend in ("shared", "reference"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            outs = linears(*leaves, backend=backend)
        loss = sum((out.float() * (i + 1)).square().sum() for i, out in enumerate(outs))
        results.append([*outs, *torch.autograd.grad(loss, leaves)])
    for got, wanted in zip(*results, strict=True):
        assert got.dtype == wanted.dtype
        assert error(got, wanted) <= (1e-2 if autocast else 1e-6)


def test_products_of_one_token_without_gradients_are_our_kernels():
    x, weight = randoms(0, (1, 1, 64), (32, 64))
    with torch.no_grad():
        assert torch.equal(linears(x, weight)[0], linears(x, weight, backend="cpu")[0])
