"""What a model is fine-tuned to answer with: a linear map of its final hidden states, where an answer is asked.

Shapes: B batch, T tokens, D model width, K outputs, A asked positions of all rows together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.decoder import CausalLM, allocate, draw
from models.trunk import Trunk


class Readout(nn.Module):
    """A decoder's or encoder's trunk and `n_outputs` numbers an asked position: classes of a text (at its end), tags of
    words, scores of an answer's ends.

    A decoder's own output matrix is dropped: nothing asks for it. Raises ValueError for fewer than one output.
    """

    def __init__(self, trunk: Trunk, n_outputs: int, seed: int = 0) -> None:
        super().__init__()
        if n_outputs < 1:
            raise ValueError(f"n_outputs={n_outputs}: a readout has at least one")
        if isinstance(trunk, CausalLM):
            trunk.lm_head = None
        self.trunk = trunk
        weight = trunk.embed.weight
        with torch.device("meta"):
            readout = nn.Linear(trunk.config.d_model, n_outputs)
        allocate(readout, weight.device)
        self.readout = readout.to(weight.dtype)
        if not weight.is_meta:
            draw(self.readout, trunk.config, seed, "readout")

    @property
    def config(self) -> ModelConfig:
        return self.trunk.config

    def forward(self, input_ids_BT: Tensor, asked_BT: Tensor) -> Tensor:
        """outputs_AK at the asked positions, row by row, in fp32; ids below 0 are padding, on the right."""
        padded_BT = input_ids_BT < 0
        ids_BT = input_ids_BT.clamp_min(0)
        # On a decoder's right no asked position sees padding; an encoder's tokens must not either.
        mask_BT = None if self.config.causal or not padded_BT.any() else (~padded_BT).long()
        x_BTD = self.trunk.run(ids_BT, mask_BT)
        outputs_AK: Tensor = self.readout(x_BTD[asked_BT])
        return outputs_AK.float()
