"""Models from and to Hugging Face `transformers`, where the same architecture exists there.

`from_hf` and `to_hf` keep every weight bit for bit; logits agree to rounding (1e-5 in fp32). What they are made of
works on plain data, a config.json's dict and a dict of tensors: `convert_config`, `convert_weights`, `family_of`, and
the way back, `export_config`, `export_weights`. Every other architecture is a class of ours (`native`), which
transformers' Auto classes know once this package is imported; so it imports transformers, and training does not import
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.config import ModelConfig
from models.decoder import CausalLM, uninitialised
from models.hf import weights as _weights
from models.hf.bert import BERT_CLASSES, bert_from_hf, bert_to_hf
from models.hf.families import FAMILIES, Family
from models.hf.fitting import family_of, why_none_fits
from models.hf.native import FabricForCausalLM
from models.hf.reading import convert_config, family_in
from models.hf.writing import settings_of

__all__ = [
    "FAMILIES",
    "Family",
    "convert_config",
    "convert_weights",
    "export_config",
    "export_weights",
    "family_in",
    "family_of",
    "from_hf",
    "to_hf",
    "to_transformers",
]


def from_hf(hf_model: Any) -> Any:
    """Our model with the weights of a `transformers` one, same dtype and device: a `CausalLM`, or what
    `bert_from_hf` makes.

    Raises ValueError for classes that ours is not (see `FAMILIES`), and for settings that ours does not have, each
    named.
    """
    if isinstance(hf_model, FabricForCausalLM):
        return hf_model.model
    name = type(hf_model).__name__
    if name in BERT_CLASSES:
        return bert_from_hf(hf_model)
    if name not in {f.model_class for f in FAMILIES}:
        raise ValueError(
            f"{name} cannot be converted; these can: "
            f"{', '.join([*(f.model_class for f in FAMILIES), *BERT_CLASSES])}"
        )
    settings = {**hf_model.config.to_dict(), "architectures": [name]}
    config, family = convert_config(settings), family_in(settings)
    source = hf_model.state_dict()
    weight = source["model.embed_tokens.weight"]
    model: CausalLM = uninitialised(config, weight.device).to(weight.dtype)
    model.load_state_dict(convert_weights(config, source, family), strict=True)
    return model.train(hf_model.training)


def to_hf(model: Any) -> Any:
    """The same model as a `transformers` one, with copied weights, same dtype and device.

    Raises ValueError when transformers has no such architecture, saying for each class why it is not.
    """
    if not model.config.causal:
        return bert_to_hf(model)
    import transformers

    config = model.config
    family = _needed_family(config)
    hf_config = getattr(transformers, family.config_class)(**settings_of(config, family))
    hf_model = getattr(transformers, family.model_class)(hf_config)
    weight = model.embed.weight
    hf_model.to(device=weight.device)
    for (
        parameter
    ) in hf_model.parameters():  # not the buffers: its rotations' frequencies are fp32 in every dtype
        parameter.data = parameter.data.to(weight.dtype)
    hf_model.config.dtype = weight.dtype
    with torch.no_grad():
        hf_model.load_state_dict(export_weights(config, model.state_dict()), strict=True)
    return hf_model.train(model.training)


def to_transformers(model: Any) -> PreTrainedModel:
    """A model of ours as a transformers one: of its own class where there is one (a copy), else of ours (shared).

    Raises ValueError for an encoder that is no BERT.
    """
    own = model.config.causal and family_of(model.config) is None
    converted: PreTrainedModel = FabricForCausalLM.wrap(model) if own else to_hf(model)
    return converted


def convert_weights(
    config: ModelConfig, state_dict: Mapping[str, Tensor], family: Family | None = None
) -> dict[str, Tensor]:
    """Our state dict from a transformers one, same dtype; `family` defaults to the config's (`family_in` knows more).

    Raises ValueError for tensors missing or left over, and where transformers has no such architecture.
    """
    return _weights.import_weights(config, family or _needed_family(config), state_dict)


def export_config(config: ModelConfig) -> dict[str, Any]:
    """What a config.json says of this model. Raises ValueError where transformers has no such architecture."""
    family = _needed_family(config)
    return {
        "model_type": family.model_type,
        "architectures": [family.model_class],
        **settings_of(config, family),
    }


def export_weights(config: ModelConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers state dict from ours, same dtype. Raises ValueError where it has no such architecture."""
    return _weights.export_weights(config, _needed_family(config), state_dict)


def _needed_family(config: ModelConfig) -> Family:
    family = family_of(config)
    if family is None:
        raise ValueError(why_none_fits(config))
    return family
