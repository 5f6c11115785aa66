"""Every architecture that transformers has too: the tiny presets, and forms of a family that they do not show."""

from __future__ import annotations

from typing import Any

import torch
from models_cases import LLAMA3, YARN

from models import PRESETS, CausalLM, ModelConfig, build, preset

_GQA = {"kind": "gqa", "n_heads": 9, "n_kv_heads": 3}
_MLA = {"kind": "mla", "n_heads": 9, "kv_latent_dim": 24, "qk_nope_dim": 8, "qk_rope_dim": 4, "v_head_dim": 6}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name, p in PRESETS.items() if name.endswith("-tiny") and p.get("causal", True)},
    "llama multi-head untied": ("smollm3-tiny", {"mixer": {"kind": "mha", "n_heads": 9}, "mixer_pattern": None,
                                                 "tie_embeddings": False}),
    "llama linear": ("llama-3.2-tiny", {"mixer": {**_GQA, "rope_scaling": {"kind": "linear", "factor": 4.0}}}),
    "llama yarn": ("llama-3.2-tiny", {"mixer": {**_GQA, "rope_scaling": {**YARN, "truncate": False}}}),
    "mistral without window, odd heads": (
        "mistral-tiny", {"mixer": {"kind": "mha", "n_heads": 7, "head_dim": 10}, "tie_embeddings": True},
    ),
    "smollm3 windowed nope": (
        "smollm3-tiny", {"mixer_pattern": [{}, {"window": 9, "position": "nope"}], "n_layers": 5},
    ),
    "smollm3 windows only": ("smollm3-tiny", {"mixer_pattern": [{}, {"window": 9}]}),
    "qwen3 windows at the end": (
        "qwen3-tiny", {"mixer": {**_GQA, "head_dim": 12, "qk_norm": "head"}, "d_model": 72,
                       "mixer_pattern": [{}, {}, {}, {"window": 9}]},
    ),
    "olmo3 two thetas": (
        "olmo3-tiny", {"mixer": {**_GQA, "qk_norm": "full", "window": 9, "rope_theta": 100.0},
                       "mixer_pattern": [{}, {"window": None, "rope_theta": 500.0, "rope_scaling": LLAMA3}]},
    ),
    "glm4 quarter": ("glm4-tiny", {"mixer": {**_GQA, "head_dim": 16, "rotary_fraction": 0.25,
                                             "rope_scaling": LLAMA3}}),
    "glm4 biased": ("glm4-tiny", {"mixer": {**_GQA, "head_dim": 16, "rotary_fraction": 0.5, "bias": "qkv"}}),
    "llama biased": ("llama-3.2-tiny", {"mixer": {**_GQA, "bias": True}}),
    "olmo3 biased": ("olmo3-tiny", {"mixer": {**_GQA, "qk_norm": "full", "bias": True}, "mixer_pattern": None}),
    "glm4 whole": ("glm4-tiny", {"mixer": {**_GQA, "head_dim": 16}}),
    "deepseek without query latent": ("deepseek-v3-tiny", {"mixer": _MLA}),
}  # fmt: skip


def config_of_case(name: str, **changes: Any) -> ModelConfig:
    """Its config, with initial values wide enough that a wrong rotation shows."""
    base, case = CASES[name]
    return preset(base, **{"init": {"std": 0.1}, "max_seq_len": 256, **case, **changes})


def random_model(config: ModelConfig, seed: int = 0) -> CausalLM:
    """A model in eval mode whose norm weights are not 1 and whose biases are not 0."""
    model = build(config, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            middle = 0.0 if name.endswith("bias") else 1.0
            parameter.data.uniform_(middle - 0.5, middle + 0.5, generator=generator)
    return model
