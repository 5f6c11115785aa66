"""The call of cpu.cpp. What it computes is the model's own forward pass, which its tests hold it to."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels import native

# What cpu.cpp's `Layer` holds, in its order: addresses of weights (0: not there), of the cache's tensors and RoPE's
# tables, then sizes.
FIELDS = (
    *("norm_in", "q", "k", "v", "q_norm", "k_norm", "o", "norm_out"),
    *("ffn_norm_in", "gate", "up", "down", "ffn_norm_out", "keys", "values", "cosine", "sine"),
    *("n_heads", "n_groups", "head_width", "d_ff", "ring_slots", "qk_norm", "normed_sum"),
)


def decode_token(
    layers_LF: Tensor,
    position: int,
    eps: float,
    embedded_D: Tensor,
    final_norm_D: Tensor | None,
    head_ND: Tensor,
) -> Tensor:
    """logits_N of the token at `position`, whose keys and values are put into the cache.

    `layers_LF`: int64, a row of `FIELDS` a layer; all tensors contiguous and of one dtype, fp32 or bf16.
    """
    assert layers_LF.is_cpu  # a default device of the user's would be another
    V, D = head_ND.shape
    sizes = (ctypes.c_int64 * 4)(D, layers_LF.shape[0], position, V)
    logits_N = embedded_D.new_empty(V)
    bf16 = int(embedded_D.dtype == torch.bfloat16)
    norm = 0 if final_norm_D is None else final_norm_D
    native.call("decode_token", bf16, sizes, layers_LF, eps, embedded_D, norm, head_ND, logits_N)
    return logits_N
