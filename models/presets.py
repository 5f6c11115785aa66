"""Named architectures: published ones in their published shapes, and tiny ones of the same make.

Sources: the `config.json` of HuggingFaceTB/SmolLM-135M, SmolLM2-135M, -360M, -1.7B (arXiv 2502.02737) and
SmolLM3-3B, meta-llama/Llama-3.2-1B (2407.21783), Qwen/Qwen3-0.6B-Base and -1.7B-Base (2505.09388),
allenai/OLMo-2-0425-1B (2501.00656) and Olmo-3-1025-7B, LGAI-EXAONE/EXAONE-4.0-1.2B and -32B (2507.11407),
mistralai/Mistral-7B-v0.1 (2310.06825), THUDM/GLM-4-9B-0414 and -32B-0414, deepseek-ai/DeepSeek-V3 (2412.19437),
google-bert/bert-base-uncased (1810.04805).
"""

from __future__ import annotations

from typing import Any

from models.config import ModelConfig
from models.parts import meant


def _sizes(
    vocab_size: int, d_model: int, n_layers: int, d_ff: int, max_seq_len: int, eps: float = 1e-5, **rest: Any
) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "n_layers": n_layers,
        "max_seq_len": max_seq_len,
        "ffn": {"kind": "swiglu", "d_ff": d_ff},
    }
    if eps != 1e-5:
        sizes["norm"] = {"eps": eps}
    return {**sizes, **rest}


def _tiny(d_model: int = 72, d_ff: int = 172, **rest: Any) -> dict[str, Any]:
    return _sizes(512, d_model, 4, d_ff, 1024, **rest)


def _gqa(n_heads: int, n_kv_heads: int, **rest: Any) -> dict[str, Any]:
    return {"kind": "gqa", "n_heads": n_heads, "n_kv_heads": n_kv_heads, **rest}


def _llama3(factor: float, original: int = 8192) -> dict[str, Any]:
    return {
        "kind": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }


def _yarn(factor: float, original: int, **rest: Any) -> dict[str, Any]:
    return {"kind": "yarn", "factor": factor, "original_max_position_embeddings": original, **rest}


def _every_fourth(**changes: Any) -> list[dict[str, Any]]:
    """A pattern whose fourth layer differs."""
    return [{}, {}, {}, changes]


_POST: dict[str, Any] = {"norm_placement": "post", "tie_embeddings": False}
_QWEN3: dict[str, Any] = {"head_dim": 128, "rope_theta": 1000000.0, "qk_norm": "head"}
_GLM4: dict[str, Any] = {"norm_placement": "sandwich", "tie_embeddings": False}
_DEEPSEEK_YARN: dict[str, Any] = {"mscale": 1.0, "mscale_all_dim": 1.0}

_SMOLLM_135M = _sizes(49152, 576, 30, 1536, 2048, mixer=_gqa(9, 3))
_QWEN3_600M = _sizes(151936, 1024, 28, 3072, 32768, 1e-6, mixer=_gqa(16, 8, **_QWEN3))
_OLMO2_1B = _sizes(
    100352, 2048, 16, 8192, 4096, 1e-6, **_POST,
    mixer={"kind": "mha", "n_heads": 16, "rope_theta": 500000.0, "qk_norm": "full"},
)  # fmt: skip

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
        "mixer": _gqa(9, 3, rope_theta=100000.0),
        "init": {"std": None},
    },
    "smollm2-360m": _sizes(49152, 960, 32, 2560, 8192, mixer=_gqa(15, 5, rope_theta=100000.0)),
    "smollm2-1.7b": _sizes(
        49152, 2048, 24, 8192, 8192, mixer={"kind": "mha", "n_heads": 32, "rope_theta": 130000.0}
    ),
    "smollm3-3b": _sizes(
        128256, 2048, 36, 11008, 65536, 1e-6,
        mixer=_gqa(16, 4, rope_theta=5000000.0), mixer_pattern=_every_fourth(position="nope"),
    ),
    "llama-3.2-1b": _sizes(
        128256, 2048, 16, 8192, 131072,
        mixer=_gqa(32, 8, rope_theta=500000.0, rope_scaling=_llama3(32.0)),
    ),
    "qwen3": _QWEN3_600M,
    "qwen3-0.6b": _QWEN3_600M,
    "qwen3-1.7b": _sizes(151936, 2048, 28, 6144, 32768, 1e-6, mixer=_gqa(16, 8, **{**_QWEN3, "head_dim": None})),
    "olmo2": _OLMO2_1B,
    "olmo2-1b": _OLMO2_1B,
    "olmo3-7b": _sizes(
        100278, 4096, 32, 11008, 65536, 1e-6, **_POST,
        mixer={"kind": "mha", "n_heads": 32, "rope_theta": 500000.0, "qk_norm": "full", "window": 4096},
        mixer_pattern=_every_fourth(window=None, rope_scaling=_yarn(8.0, 8192, attention_factor=1.2079441541679836)),
    ),
    "exaone4-1.2b": _sizes(
        102400, 2048, 30, 4096, 65536, norm_placement="post",
        mixer=_gqa(32, 8, rope_theta=1000000.0, rope_scaling=_llama3(16.0), qk_norm="head"),
    ),
    "exaone4-32b": _sizes(
        102400, 5120, 64, 27392, 131072, **_POST,
        mixer=_gqa(40, 8, rope_theta=1000000.0, rope_scaling=_llama3(16.0), qk_norm="head", window=4096),
        mixer_pattern=_every_fourth(window=None, position="nope"),
    ),
    "mistral-7b": _sizes(32000, 4096, 32, 14336, 32768, mixer=_gqa(32, 8, window=4096), tie_embeddings=False),
    "glm4-9b": _sizes(151552, 4096, 40, 13696, 32768, mixer=_gqa(32, 2, rotary_fraction=0.5, bias="qkv"), **_GLM4),
    "glm4-32b": _sizes(151552, 6144, 61, 23040, 32768, mixer=_gqa(48, 2, rotary_fraction=0.5), **_GLM4),
    # Its latent attention and its first layers' feed-forward width in every layer, instead of experts from the
    # fourth on: 37 billion parameters, not 671.
    "deepseek-v3-attention": _sizes(
        129280, 7168, 61, 18432, 163840, 1e-6, tie_embeddings=False,
        mixer={
            "kind": "mla", "n_heads": 128, "kv_latent_dim": 512, "q_latent_dim": 1536, "qk_nope_dim": 128,
            "qk_rope_dim": 64, "v_head_dim": 128, "rope_scaling": _yarn(40.0, 4096, **_DEEPSEEK_YARN),
        },
    ),
    "smollm-tiny": _tiny(64, mixer=_gqa(4, 2)),
    "smollm3-tiny": _tiny(mixer=_gqa(9, 3), mixer_pattern=_every_fourth(position="nope")),
    "llama-3.2-tiny": _tiny(mixer=_gqa(9, 3, rope_theta=500000.0, rope_scaling=_llama3(8.0, 128))),
    "qwen3-tiny": _tiny(64, eps=1e-6, mixer=_gqa(4, 2, head_dim=32, rope_theta=1000000.0, qk_norm="head")),
    "olmo2-tiny": _tiny(
        64, eps=1e-6, **_POST, mixer={"kind": "mha", "n_heads": 4, "rope_theta": 500000.0, "qk_norm": "full"}
    ),
    "olmo3-tiny": _tiny(
        eps=1e-6, **_POST, mixer=_gqa(9, 3, rope_theta=500000.0, qk_norm="full", window=16),
        mixer_pattern=_every_fourth(window=None, rope_scaling=_yarn(8.0, 128)),
    ),
    "exaone4-tiny": _tiny(
        norm_placement="post", mixer=_gqa(9, 3, rope_theta=1000000.0, rope_scaling=_llama3(8.0, 128), qk_norm="head")
    ),
    "exaone4-hybrid-tiny": _tiny(
        **_POST, mixer=_gqa(9, 3, rope_theta=1000000.0, qk_norm="head", window=16),
        mixer_pattern=_every_fourth(window=None, position="nope"),
    ),
    "mistral-tiny": _tiny(mixer=_gqa(9, 3, window=16), tie_embeddings=False),
    "glm4-tiny": _tiny(mixer=_gqa(9, 3, rotary_fraction=0.5), **_GLM4),
    "deepseek-v3-tiny": _tiny(
        eps=1e-6, tie_embeddings=False,
        mixer={
            "kind": "mla", "n_heads": 9, "kv_latent_dim": 24, "q_latent_dim": 36, "qk_nope_dim": 8,
            "qk_rope_dim": 4, "v_head_dim": 8, "rope_scaling": _yarn(8.0, 128, **_DEEPSEEK_YARN),
        },
    ),
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
}  # fmt: skip


def preset(name: str, **changes: Any) -> ModelConfig:
    """The named architecture, with top-level fields changed. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        hint = meant(name, PRESETS)
        raise ValueError(f"no preset is named {name!r}{hint} (there are {', '.join(PRESETS)})")
    return ModelConfig.model_validate({**PRESETS[name], **changes})
