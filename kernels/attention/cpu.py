"""Attention on CPUs by kernels of our own (cpu.cpp): block by block as in arXiv 2307.08691, fp32 and bf16.

PyTorch's backward in bf16 takes several times as long: it does not use the matrix unit for small blocks. Backward
keeps queries, keys, values, the output, and one number a query.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from kernels import native

# Below, PyTorch's operator is as fast (blocks are 64 wide); wider heads have not been measured.
FEWEST_QUERIES, WIDEST_HEAD = 32, 256
WIDEST_WINDOW = 2**31 - 1  # distances are 32-bit integers in the kernels


def takes(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, key_mask_BS: Tensor | None) -> bool:
    """Whether these kernels are there for such tensors, and worth it."""
    if q_BHTK.shape[2] < FEWEST_QUERIES or max(q_BHTK.shape[3], v_BGSV.shape[3]) > WIDEST_HEAD:
        return False
    return _computes(q_BHTK, k_BGSK, v_BGSV, key_mask_BS)


def _computes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    if not q.dtype == k.dtype == v.dtype or q.dtype not in native.attention_dtypes():
        return False
    tensors = (q, k, v) if mask is None else (q, k, v, mask)
    if torch.compiler.is_compiling():  # its tensors are fake; what is compiled will run on real ones
        return all(x.device.type == "cpu" for x in tensors)
    return all(map(native.in_memory, tensors)) and not native.watched()


def attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    key_mask_BS: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Same contract as `reference.attention`, without the weights; differentiable once.

    Raises ValueError where there are no kernels for the tensors.
    """
    if not _computes(q_BHTK, k_BGSK, v_BGSV, key_mask_BS):
        takes = "one dtype in the CPU's memory: fp32 with AVX-512, bf16 with a matrix unit (AMX)"
        raise native.refusal("attention", takes, q=q_BHTK, k=k_BGSK, v=v_BGSV)
    scale = q_BHTK.shape[-1] ** -0.5 if scale is None else scale
    mask = None if key_mask_BS is None else key_mask_BS.bool()
    window = 0 if window is None else min(window, WIDEST_WINDOW)
    out: Tensor = _forward(q_BHTK, k_BGSK, v_BGSV, mask, causal, window, scale)[0]
    return out


# Not `custom_op`, whose kernels load torch's compiler when they are first called.
_HOW = "Tensor? mask, bool causal, SymInt window, float scale"
torch.library.define("fabric::attention", f"(Tensor q, Tensor k, Tensor v, {_HOW}) -> (Tensor, Tensor)")
torch.library.define(
    "fabric::attention_backward",
    f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_HOW}) -> (Tensor, Tensor, Tensor)",
)
_forward, _backward = torch.ops.fabric.attention.default, torch.ops.fabric.attention_backward.default


@torch.library.impl("fabric::attention", "cpu")
def _on_cpu(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """out_BHTV and the log-sum-exps_BHT of its rows' scores."""
    q, k, v = _rows(q), _rows(k), _rows(v)
    out, lse = _forward_shapes(q, k, v, mask, causal, window, scale)
    _call("attention_forward", (q, k, v, out), mask, lse, causal, window, scale)
    return out, lse


@torch.library.register_fake("fabric::attention")
def _forward_shapes(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    B, H, T, _ = q.shape
    # Positions before heads in memory, as projections have them: no copy follows.
    out = q.new_empty(B, T, H, v.shape[3]).transpose(1, 2)
    return out, q.new_empty(B, H, T, dtype=torch.float32)


@torch.library.impl("fabric::attention_backward", "cpu")
def _backward_on_cpu(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, grad = _rows(q), _rows(k), _rows(v), _rows(grad.to(q.dtype))
    dq, dk, dv = _backward_shapes(grad, q, k, v)
    tensors = (q, k, v, _rows(out), grad, dq, dk, dv)
    _call("attention_backward", tensors, mask, lse.contiguous(), causal, window, scale)
    return dq, dk, dv


@torch.library.register_fake("fabric::attention_backward")
def _backward_shapes(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q), _like(k), _like(v)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, ctx.causal, ctx.window, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, mask)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    assert grad is not None
    q, k, v, out, lse, mask = ctx.saved_tensors
    dq, dk, dv = _backward(grad, q, k, v, out, lse, mask, ctx.causal, ctx.window, ctx.scale)
    return dq, dk, dv, None, None, None, None


torch.library.register_autograd("fabric::attention", _gradients, setup_context=_setup)


def _second_derivative(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
    raise RuntimeError(
        "attention's kernels for CPUs are differentiable once; for derivatives of gradients use backend='sdpa' inside "
        "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), or backend='reference'"
    )


torch.library.register_autograd("fabric::attention_backward", _second_derivative)


def _like(x: Tensor) -> Tensor:
    B, H, T, K = x.shape
    return x.new_empty(B, T, H, K).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    """The tensor with contiguous rows, which the kernels ask for."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(
    function: str,
    tensors: tuple[Tensor, ...],
    mask: Tensor | None,
    lse: Tensor,
    causal: bool,
    window: int,
    scale: float,
) -> None:
    """Hand sizes, addresses and strides (batch, position, head) to a function of the library."""
    q, _, v = tensors[:3]
    B, H, T, K = q.shape
    G, S, V = v.shape[1:]
    sizes = (ctypes.c_int64 * 9)(B, H, G, T, S, K, V, causal, window)
    addresses = (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
    strides = [s for x in tensors for s in (x.stride(0), x.stride(2), x.stride(1))]
    native.call(
        function,
        int(q.dtype == torch.bfloat16),
        sizes,
        scale,
        addresses,
        (ctypes.c_int64 * len(strides))(*strides),
        0 if mask is None else mask.contiguous(),
        lse,
    )
