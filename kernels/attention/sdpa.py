"""Attention through `F.scaled_dot_product_attention`, with the cheapest mask that says the same thing.

Nothing visible is masked (one query, or no causality): no mask. Plain causal training: the `is_causal` flag.
Otherwise an additive mask in the queries' dtype, kept between calls, so that all layers share one storage (a
boolean mask is converted, and kept for backward, once per call).
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention.reference import visible_pairs


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def _new_mask(
    n_queries: int, n_keys: int, causal: bool, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    seen = visible_pairs(n_queries, n_keys, causal=causal, window=window, device=device)
    return _additive(seen, dtype)


@lru_cache(maxsize=4)  # windows of one model, at the length of training and of evaluation
def _kept_mask(
    n_queries: int, n_keys: int, causal: bool, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # a mask made in inference mode could not be used in training later
        return _new_mask(n_queries, n_keys, causal, window, dtype, device)


def _mask_of(
    q_BHTK: Tensor, n_keys: int, causal: bool, window: int | None, key_mask_BS: Tensor | None
) -> tuple[Tensor | None, bool]:
    """The additive mask, if one is needed, and the `is_causal` flag."""
    n_queries = q_BHTK.shape[2]
    if window is not None and window >= n_keys:
        window = None
    if key_mask_BS is not None:
        seen = visible_pairs(
            n_queries, n_keys, causal=causal, window=window, key_mask_BS=key_mask_BS, device=q_BHTK.device
        )
        return _additive(seen, q_BHTK.dtype), False
    if window is None and (n_queries == 1 or not causal):
        return None, False
    if window is None and n_queries == n_keys:
        return None, True
    # torch.compile traces through a cache with a warning; it folds a mask made in place into the graph.
    make_mask = _new_mask if torch.compiler.is_compiling() else _kept_mask
    return make_mask(n_queries, n_keys, causal, window, q_BHTK.dtype, q_BHTK.device), False


def _slow_backward(*inputs: Tensor) -> bool:
    """Whether PyTorch's CPU backward would take several times as long in 16 bits as in 32 (heads below 64 wide)."""
    x = inputs[0]
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16) or x.shape[-1] >= 64:
        return False
    return torch.is_grad_enabled() and any(i.requires_grad for i in inputs)


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
    """Same contract as `reference.attention`, without the weights."""
    if _slow_backward(q_BHTK, k_BGSK, v_BGSV):
        with torch.autocast("cpu", enabled=False):
            wide = (x.float() for x in (q_BHTK, k_BGSK, v_BGSV))
            out = attention(*wide, causal=causal, window=window, key_mask_BS=key_mask_BS, scale=scale)
            return out.to(q_BHTK.dtype)
    B, H, T, K = q_BHTK.shape
    G, S, V = v_BGSV.shape[1:]
    mask, is_causal = _mask_of(q_BHTK, S, causal, window, key_mask_BS)
    scale = K**-0.5 if scale is None else scale
    if T == 1:
        # One query a head: the heads of a group become the queries of one key/value head, unrepeated.
        q_BGrK = q_BHTK.reshape(B, G, H // G, K)
        out = F.scaled_dot_product_attention(q_BGrK, k_BGSK, v_BGSV, attn_mask=mask, scale=scale)
        return out.reshape(B, H, 1, V)
    # The fused CPU and CUDA forms want one width for queries, keys and values; zeros added change nothing.
    if V < K:
        v_BGSV = F.pad(v_BGSV, (0, K - V))
    elif V > K:
        q_BHTK, k_BGSK = F.pad(q_BHTK, (0, V - K)), F.pad(k_BGSK, (0, V - K))
    if G != H and mask is not None and q_BHTK.device.type == "cuda":
        # CUDA's masked fused form takes no grouped heads; repeating is cheaper than its unfused fallback.
        k_BGSK, v_BGSV = (x.repeat_interleave(H // G, dim=1) for x in (k_BGSK, v_BGSV))
        G = H
    out_BHTV = F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSV, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=bool(G != H)
    )
    return out_BHTV[..., :V] if V < K else out_BHTV
