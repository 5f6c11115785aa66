"""Softmax attention with causal, sliding-window and padding masks and grouped heads."""

from __future__ import annotations

from torch import Tensor

from kernels.attention import reference, sdpa

BACKENDS = ("auto", "reference", "sdpa")


def attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    key_mask_BS: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """out_BHTV of T queries that are the last T of S positions; see `reference` for the definition.

    `scale` defaults to K**-0.5. `backend`: "auto" (= "sdpa", on every device) or a name of `BACKENDS`.
    Raises ValueError for an unknown backend or heads that do not group.
    """
    if q_BHTK.shape[1] % k_BGSK.shape[1]:
        raise ValueError(
            f"{q_BHTK.shape[1]} query heads cannot share {k_BGSK.shape[1]} key/value heads evenly"
        )
    if backend == "reference":
        return reference.attention(
            q_BHTK, k_BGSK, v_BGSV, causal=causal, window=window, key_mask_BS=key_mask_BS, scale=scale
        )[0]
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    return sdpa.attention(
        q_BHTK, k_BGSK, v_BGSV, causal=causal, window=window, key_mask_BS=key_mask_BS, scale=scale
    )
