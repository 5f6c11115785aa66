"""A short convolution over time in front of a mixer. Shapes: B batch, T new tokens, S seen inputs, D width, W taps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from models.cache import LayerState
    from models.mixers.base import Step


class ShortConv(nn.Module):
    """Causal depthwise convolution: y_t = sum_k w_k * x_(t-W+1+k), every channel by itself, no bias.

    What comes before a text is 0. In front of attention it lets a token carry the one before it, which associative
    recall needs (Arora et al. 2023, arXiv 2312.04927, §4 and their hybrid baseline; H3, arXiv 2212.14052, shift).
    """

    def __init__(self, width: int, n_taps: int) -> None:
        super().__init__()
        self.n_taps = n_taps
        self.weight = nn.Parameter(torch.empty(n_taps, width))

    def forward(self, x_BTD: Tensor, step: Step, state: LayerState | None = None) -> Tensor:
        T, before = x_BTD.shape[1], self.n_taps - 1
        if step.key_mask_BS is not None:  # padding is as what comes before a text
            x_BTD = x_BTD * step.key_mask_BS[:, -T:, None].to(x_BTD.dtype)
        x_BSD = x_BTD
        if state is not None:
            (x_BSD,) = state.append((x_BTD,), step.start, ordered=True)
            x_BSD = x_BSD[:, -(T + before) :].to(x_BTD.dtype)
        x_BSD = nn.functional.pad(x_BSD, (0, 0, T + before - x_BSD.shape[1], 0))
        taps = self.weight.to(x_BTD.dtype)
        y_BTD = taps[0] * x_BSD[:, :T]
        for k in range(1, self.n_taps):
            y_BTD = y_BTD + taps[k] * x_BSD[:, k : k + T]
        return y_BTD
