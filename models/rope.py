"""Rotary position embedding (RoPE, arXiv 2104.09864 eq. 34), in the rotate-half layout of Llama.

Shapes: B batch, T positions, H heads, K width of the table (even). Component i is paired with i + K/2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.rotary import rotary
from models.rope_scaling import Scaling

Rotation = tuple[Tensor, Tensor]


def rotate(x_BTHR: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair by its position's angle; keeps nothing of x for backward."""
    return rotary(x_BTHR, *rotation)


class Rotary(NamedTuple):
    """How a layer rotates: layers with equal ones share a table.

    Of `width` components the pairs (i, i + width/2) with i < `turned`/2 turn; the others stay.
    """

    width: int
    turned: int
    theta: float
    scaling: Scaling | None = None

    def frequencies(self) -> Tensor:
        """Angle per position of every pair that turns, (turned/2,)."""
        if self.scaling is not None:
            return self.scaling.frequencies(self.theta, self.turned)
        half = torch.arange(0, self.turned, 2, dtype=torch.float32) / self.turned
        return self.theta**-half


class RotaryTable(nn.Module):
    """cos and sin of every position below `max_seq_len`, in non-persistent buffers.

    The sign of rotate-half is put into the table: x * cos + roll(x, K/2) * signed_sin. So is what does not
    turn (cos 1, sin 0): a partial rotation costs no split of the heads.
    """

    def __init__(self, rotary: Rotary, max_seq_len: int) -> None:
        super().__init__()
        self.rotary, self.max_seq_len = rotary, max_seq_len
        self.register_buffer(
            "cos", torch.empty(max_seq_len, 1, rotary.width, dtype=torch.float32), persistent=False
        )
        self.register_buffer(
            "signed_sin", torch.empty(max_seq_len, 1, rotary.width, dtype=torch.float32), persistent=False
        )
        self.cos: Tensor
        self.signed_sin: Tensor
        self.fill()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryTable:
        """In whatever 16 bits a model is put, its angles are fp32."""
        super()._apply(fn, recurse)
        if self.cos.dtype in (torch.bfloat16, torch.float16):
            self.cos, self.signed_sin = self.cos.float(), self.signed_sin.float()
            self.fill()
        return self

    def fill(self) -> None:
        """Compute the tables (again, when there is new memory)."""
        if self.cos.is_meta:
            return
        frequencies = self.rotary.frequencies()
        angle = torch.outer(torch.arange(self.max_seq_len, dtype=torch.float32), frequencies)
        amplitude = 1.0 if self.rotary.scaling is None else self.rotary.scaling.amplitude
        still = (0, (self.rotary.width - self.rotary.turned) // 2)
        cos = F.pad(angle.cos() * amplitude, still, value=1.0)
        sin = F.pad(angle.sin() * amplitude, still)
        self.cos.copy_(torch.cat((cos, cos), dim=-1).unsqueeze(1))
        self.signed_sin.copy_(torch.cat((-sin, sin), dim=-1).unsqueeze(1))

    def at(self, start: int, n: int) -> Rotation:
        """Tables (T, 1, K) for positions start … start+n-1, without a copy."""
        return self.cos[start : start + n], self.signed_sin[start : start + n]

    def at_positions(self, positions_BT: Tensor) -> Rotation:
        """Tables (B, T, 1, K) for positions that differ between sequences."""
        return self.cos[positions_BT], self.signed_sin[positions_BT]
