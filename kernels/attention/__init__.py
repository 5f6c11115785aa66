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
    `BACKENDS`. Raises ValueError for an unknown backend, shapes that do not belong together, heads that do not group,
    a window below 1, and for "cpu" with tensors it does not take.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    _check(q_BHTK, k_BGSK, v_BGSV, window, key_mask_BS)
    options: Any = {"causal": causal, "window": window, "key_mask_BS": key_mask_BS, "scale": scale}
    if backend == "reference":
        return reference.attention(q_BHTK, k_BGSK, v_BGSV, **options)[0]
    if backend == "cpu" or (backend == "auto" and cpu.takes(q_BHTK, k_BGSK, v_BGSV, key_mask_BS)):
        return cpu.attention(q_BHTK, k_BGSK, v_BGSV, **options)
    return sdpa.attention(q_BHTK, k_BGSK, v_BGSV, **options)


def _check(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, window: int | None, mask: Tensor | None) -> None:
    q, k, v = q_BHTK.shape, k_BGSK.shape, v_BGSV.shape
    if not (
        len(q) == len(k) == len(v) == 4
        and k[:3] == v[:3]
        and q[0] == k[0]
        and q[2] <= k[2]
        and q[3] == k[3]
        and (mask is None or mask.shape == (k[0], k[2]))
    ):
        masked = "" if mask is None else f" and a key mask {tuple(mask.shape)}"
        raise ValueError(
            f"queries {tuple(q)}, keys {tuple(k)}, values {tuple(v)}{masked} do not belong together: give "
            "(B, H, T, K), (B, G, S, K), (B, G, S, V) and (B, S), where the T queries are the last of S positions"
        )
    if k[1] == 0 or q[1] % k[1]:
        raise ValueError(f"{q[1]} query heads cannot share {k[1]} key/value heads evenly")
    if window is not None and window < 1:
        raise ValueError(
            f"window={window} sees no key: use 1 (each token itself) or more, or None for all keys"
        )
