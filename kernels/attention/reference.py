"""Softmax attention, written out: the definition the other backends are held to.

Shapes: B batch, H query heads, G key/value heads (G divides H), T queries, S keys, K query/key width, V value
width. Queries are the *last* T of the S positions, so the same definition covers training (T = S), a chunk of
a prefill and one step of decoding. Query head h reads key/value head h // (H / G).
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible_pairs(
    n_queries: int,
    n_keys: int,
    *,
    causal: bool = True,
    window: int | None = None,
    key_mask_BS: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which keys each query sees: bool (T, S), or (B, 1, T, S) when a key mask is given.

    Causal: key j is visible to query i iff j <= i. Window W: iff also |i - j| < W (W keys, itself included).
    A padding key (False in `key_mask_BS`) is invisible, except to itself, so that no row is empty.
    """
    query_T1 = torch.arange(n_keys - n_queries, n_keys, device=device).unsqueeze(1)
    distance_TS = query_T1 - torch.arange(n_keys, device=device)
    seen = distance_TS >= 0 if causal else torch.ones_like(distance_TS, dtype=torch.bool)
    if window is not None:
        seen = seen & (distance_TS.abs() < window)
    if key_mask_BS is not None:
        seen = (seen & key_mask_BS[:, None, None, :].bool()) | (distance_TS == 0)
    return seen


def attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    key_mask_BS: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention: out_BHTV and the weights_BHTS (arXiv 1706.03762 eq. 1; grouped heads 2305.13245)."""
    n_repeats = q_BHTK.shape[1] // k_BGSK.shape[1]
    k_BHSK = k_BGSK.repeat_interleave(n_repeats, dim=1)
    v_BHSV = v_BGSV.repeat_interleave(n_repeats, dim=1)
    scale = q_BHTK.shape[-1] ** -0.5 if scale is None else scale
    scores_BHTS = (q_BHTK @ k_BHSK.transpose(-1, -2)) * scale
    seen = visible_pairs(
        q_BHTK.shape[2],
        k_BGSK.shape[2],
        causal=causal,
        window=window,
        key_mask_BS=key_mask_BS,
        device=q_BHTK.device,
    )
    weights_BHTS = scores_BHTS.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return weights_BHTS @ v_BHSV, weights_BHTS
