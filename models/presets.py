"""Named architectures: published ones in their published shapes, and tiny ones of the same make.

Sources: the `config.json` of HuggingFaceTB/SmolLM-135M and SmolLM2-135M (arXiv 2502.02737),
Qwen/Qwen3-0.6B-Base (2505.09388), allenai/OLMo-2-0425-1B (2501.00656), google-bert/bert-base-uncased (1810.04805).
"""

from __future__ import annotations

from typing import Any

from models.config import ModelConfig
from models.parts import nearest

_SMOLLM_135M: dict[str, Any] = {
    "vocab_size": 49152,
    "d_model": 576,
    "n_layers": 30,
    "max_seq_len": 2048,
    "mixer": {"kind": "gqa", "n_heads": 9, "n_kv_heads": 3},
    "ffn": {"kind": "swiglu", "d_ff": 1536},
}

_BERT: dict[str, Any] = {
    "norm": {"kind": "layernorm", "eps": 1e-12},
    "norm_placement": "postln",
    "causal": False,
    "positions": "learned",
    "embedding_norm": True,
    "token_types": 2,
}

PRESETS: dict[str, dict[str, Any]] = {
    "smollm-135m": _SMOLLM_135M,
    "smollm2-135m": {
        **_SMOLLM_135M,
        "max_seq_len": 8192,
        "mixer": {"kind": "gqa", "n_heads": 9, "n_kv_heads": 3, "rope_theta": 100000.0},
        "init": {"std": None},
    },
    "smollm-tiny": {
        "vocab_size": 512,
        "d_model": 64,
        "n_layers": 4,
        "max_seq_len": 1024,
        "mixer": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2},
        "ffn": {"kind": "swiglu", "d_ff": 172},
    },
    "qwen3": {
        "vocab_size": 151936,
        "d_model": 1024,
        "n_layers": 28,
        "max_seq_len": 32768,
        "mixer": {
            "kind": "gqa",
            "n_heads": 16,
            "n_kv_heads": 8,
            "head_dim": 128,
            "rope_theta": 1000000.0,
            "qk_norm": "head",
        },
        "ffn": {"kind": "swiglu", "d_ff": 3072},
        "norm": {"eps": 1e-6},
    },
    "qwen3-tiny": {
        "vocab_size": 512,
        "d_model": 64,
        "n_layers": 4,
        "max_seq_len": 1024,
        "mixer": {
            "kind": "gqa",
            "n_heads": 4,
            "n_kv_heads": 2,
            "head_dim": 32,
            "rope_theta": 1000000.0,
            "qk_norm": "head",
        },
        "ffn": {"kind": "swiglu", "d_ff": 172},
        "norm": {"eps": 1e-6},
    },
    "olmo2": {
        "vocab_size": 100352,
        "d_model": 2048,
        "n_layers": 16,
        "max_seq_len": 4096,
        "mixer": {"kind": "mha", "n_heads": 16, "rope_theta": 500000.0, "qk_norm": "full"},
        "ffn": {"kind": "swiglu", "d_ff": 8192},
        "norm": {"eps": 1e-6},
        "norm_placement": "post",
        "tie_embeddings": False,
    },
    "olmo2-tiny": {
        "vocab_size": 512,
        "d_model": 64,
        "n_layers": 4,
        "max_seq_len": 1024,
        "mixer": {"kind": "mha", "n_heads": 4, "rope_theta": 500000.0, "qk_norm": "full"},
        "ffn": {"kind": "swiglu", "d_ff": 172},
        "norm": {"eps": 1e-6},
        "norm_placement": "post",
        "tie_embeddings": False,
    },
    "bert-base-uncased": {
        "vocab_size": 30522,
        "d_model": 768,
        "n_layers": 12,
        "max_seq_len": 512,
        "mixer": {"kind": "mha", "n_heads": 12, "position": "nope", "bias": True},
        "ffn": {"kind": "gelu", "d_ff": 3072, "bias": True},
        **_BERT,
    },
    "bert-tiny": {
        "vocab_size": 512,
        "d_model": 64,
        "n_layers": 4,
        "max_seq_len": 256,
        "mixer": {"kind": "mha", "n_heads": 4, "position": "nope", "bias": True},
        "ffn": {"kind": "gelu", "d_ff": 256, "bias": True},
        **_BERT,
    },
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The named architecture, with top-level fields changed. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        close = nearest(name, list(PRESETS))
        hint = f"did you mean {close!r}? " if close else ""
        raise ValueError(f"no preset is named {name!r}; {hint}there are {', '.join(PRESETS)}")
    return ModelConfig.model_validate({**PRESETS[name], **changes})
