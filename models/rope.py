"""Rotary position embedding (RoPE, arXiv 2104.09864 eq. 34), in the rotate-half layout of Llama.

Shapes: B batch, T positions, H heads, R rotated width (even). Component i is paired with i + R/2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.rotary import rotary

Rotation = tuple[Tensor, Tensor]


def rotate(x_BTHR: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair by its position's angle; keeps nothing of x for backward."""
    return rotary(x_BTHR, *rotation)


class RotaryTable(nn.Module):
    """cos and sin of every position below `max_seq_len`, in non-persistent buffers.

    The sign of rotate-half is put into the table: x * cos + roll(x, R/2) * signed_sin.
    """

    def __init__(self, width: int, theta: float, max_seq_len: int) -> None:
        super().__init__()
        self.width, self.theta, self.max_seq_len = width, theta, max_seq_len
        self.register_buffer("cos", torch.empty(max_seq_len, 1, width), persistent=False)
        self.register_buffer("signed_sin", torch.empty(max_seq_len, 1, width), persistent=False)
        self.cos: Tensor
        self.signed_sin: Tensor
        self.fill()

    def fill(self) -> None:
        """Compute the tables (again, after `to_empty`)."""
        if self.cos.is_meta:
            return
        half = torch.arange(0, self.width, 2, dtype=torch.float32) / self.width
        angle = torch.outer(torch.arange(self.max_seq_len, dtype=torch.float32), self.theta**-half)
        self.cos.copy_(torch.cat((angle.cos(), angle.cos()), dim=-1).unsqueeze(1))
        self.signed_sin.copy_(torch.cat((-angle.sin(), angle.sin()), dim=-1).unsqueeze(1))

    def at(self, start: int, n: int) -> Rotation:
        """Tables (T, 1, R) for positions start … start+n-1, without a copy."""
        return self.cos[start : start + n], self.signed_sin[start : start + n]

    def at_positions(self, positions_BT: Tensor) -> Rotation:
        """Tables (B, T, 1, R) for positions that differ between sequences."""
        return self.cos[positions_BT], self.signed_sin[positions_BT]
