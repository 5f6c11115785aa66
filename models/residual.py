"""The residual block: where the norms stand around the mixer and the feed-forward layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from models.mixers.base import MixerConfig, Step
from models.norms import before_products
from models.short_conv import ShortConv

if TYPE_CHECKING:
    from models.cache import LayerState
    from models.config import ModelConfig


def norms_per_sublayer(placement: str) -> int:
    """Norms around one mixer or feed-forward layer."""
    return 2 if placement == "sandwich" else 1


class Block(nn.Module):
    """One layer: forward(x_BTD, step, state) -> x_BTD. Every block has a mixer of its own."""

    def __init__(self, config: ModelConfig, mixer: MixerConfig) -> None:
        super().__init__()
        placement, D = config.norm_placement, config.d_model
        self.normed_sum = placement == "postln"
        self.short_conv = None if config.short_conv is None else ShortConv(D, config.short_conv)
        self.mixer = mixer.build(D, config.norm)
        self.ffn = config.ffn.build(D)
        before, after = placement in ("pre", "sandwich"), placement != "pre"
        self.mixer_norm_in = config.norm.build(D) if before else None
        self.mixer_norm_out = config.norm.build(D) if after else None
        self.ffn_norm_in = config.norm.build(D) if before else None
        self.ffn_norm_out = config.norm.build(D) if after else None

    def forward(self, x_BTD: Tensor, step: Step, state: LayerState | None = None) -> Tensor:
        h_BTD = self._mixed(before_products(self.mixer_norm_in, x_BTD), step, state)
        x_BTD = self._add(x_BTD, h_BTD, self.mixer_norm_out)
        h_BTD = before_products(self.ffn_norm_in, x_BTD)
        return self._add(x_BTD, self.ffn(h_BTD), self.ffn_norm_out)

    def _mixed(self, h_BTD: Tensor, step: Step, state: LayerState | None) -> Tensor:
        """What looks at several tokens; where rows share tokens and it does not know how to, it is given the rows."""
        shared = step.shared
        if shared is not None and (
            self.short_conv is not None or not getattr(self.mixer, "SHARES_ROWS", False)
        ):
            return shared.line(self._mixed(shared.spread(h_BTD), replace(step, shared=None), state))
        if self.short_conv is not None:
            h_BTD = self.short_conv(h_BTD, step, None if state is None else state.conv)
        mixed_BTD: Tensor = self.mixer(h_BTD, step, state)
        return mixed_BTD

    def _add(self, x_BTD: Tensor, y_BTD: Tensor, norm: nn.Module | None) -> Tensor:
        if norm is None:
            return x_BTD + y_BTD
        return norm(x_BTD + y_BTD) if self.normed_sum else x_BTD + norm(y_BTD)
