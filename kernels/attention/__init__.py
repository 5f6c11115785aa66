"""Softmax attention with causal, sliding-window and padding masks and grouped heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kernels.attention import cpu, reference, sdpa

BACKENDS = ("auto", "reference", "sdpa", "cpu")


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

    `scale` defaults to K**-0.5. `backend`: "auto" (our own kernels on CPUs that have them, else "sdpa") or a name of
    `BACKENDS`. Raises ValueError for an unknown backend or heads that do not group.
    """
    if q_BHTK.shape[1] % k_BGSK.shape[1]:
        raise ValueError(
            f"{q_BHTK.shape[1]} query heads cannot share {k_BGSK.shape[1]} key/value heads evenly"
        )
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    options: Any = {"causal": causal, "window": window, "key_mask_BS": key_mask_BS, "scale": scale}
    if backend == "reference":
        return reference.attention(q_BHTK, k_BGSK, v_BGSV, **options)[0]
    if backend == "cpu" or (backend == "auto" and cpu.takes(q_BHTK, v_BGSV)):
        return cpu.attention(q_BHTK, k_BGSK, v_BGSV, **options)
    return sdpa.attention(q_BHTK, k_BGSK, v_BGSV, **options)
