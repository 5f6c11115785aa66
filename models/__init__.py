"""Architectures. Import `kernels` and torch only.

Names are loaded at first use, so that `import models` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.cache import Cache
    from models.config import FFNConfig, MixerConfig, ModelConfig
    from models.cost import flops_per_token, n_params, state_bytes
    from models.decoder import CausalLM, CausalLMOutput, build
    from models.encoder import Encoder, EncoderOutput
    from models.heads import MaskedLM, SequenceClassifier
    from models.hf import from_hf, to_hf
    from models.presets import PRESETS, preset
    from models.readout import Readout
    from models.sampling import generate

_HOME = {
    "ModelConfig": "config",
    "MixerConfig": "config",
    "FFNConfig": "config",
    "build": "decoder",
    "CausalLM": "decoder",
    "CausalLMOutput": "decoder",
    "Encoder": "encoder",
    "EncoderOutput": "encoder",
    "SequenceClassifier": "heads",
    "MaskedLM": "heads",
    "Readout": "readout",
    "Cache": "cache",
    "PRESETS": "presets",
    "preset": "presets",
    "generate": "sampling",
    "from_hf": "hf",
    "to_hf": "hf",
    "n_params": "cost",
    "flops_per_token": "cost",
    "state_bytes": "cost",
}

__all__ = [  # noqa: RUF022 (in the order of use)
    "ModelConfig",
    "MixerConfig",
    "FFNConfig",
    "build",
    "CausalLM",
    "CausalLMOutput",
    "Encoder",
    "EncoderOutput",
    "SequenceClassifier",
    "MaskedLM",
    "Readout",
    "Cache",
    "PRESETS",
    "preset",
    "generate",
    "from_hf",
    "to_hf",
    "n_params",
    "flops_per_token",
    "state_bytes",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    value = getattr(import_module(f"models.{_HOME[name]}"), name)
    globals()[name] = value
    return value
