"""What published config.json files say of the architecture, in the spelling they have (transformers 4)."""

from __future__ import annotations

from typing import Any

_LLAMA3 = {
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def _config(
    architecture: str, model_type: str, sizes: tuple[int, int, int, int, int, int], **rest: Any
) -> dict[str, Any]:
    vocab_size, hidden, intermediate, n_layers, n_heads, n_kv_heads = sizes
    return {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "model_type": model_type,
        "num_attention_heads": n_heads,
        "num_hidden_layers": n_layers,
        "num_key_value_heads": n_kv_heads,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.54.0",
        "use_cache": True,
        "vocab_size": vocab_size,
        **rest,
    }


# The preset it must be -> the file.
PUBLISHED: dict[str, dict[str, Any]] = {
    "smollm-135m": _config(
        "LlamaForCausalLM", "llama", (49152, 576, 1536, 30, 9, 3),
        attention_bias=False, max_position_embeddings=2048, rms_norm_eps=1e-5, rope_scaling=None, rope_theta=10000.0,
        tie_word_embeddings=True,
    ),
    "llama-3.2-1b": _config(
        "LlamaForCausalLM", "llama", (128256, 2048, 8192, 16, 32, 8),
        attention_bias=False, head_dim=64, max_position_embeddings=131072, mlp_bias=False, pretraining_tp=1,
        rms_norm_eps=1e-5, rope_scaling={"factor": 32.0, **_LLAMA3}, rope_theta=500000.0, tie_word_embeddings=True,
    ),
    "smollm3-3b": _config(
        "SmolLM3ForCausalLM", "smollm3", (128256, 2048, 11008, 36, 16, 4),
        attention_bias=False, max_position_embeddings=65536, max_window_layers=28, mlp_bias=False,
        no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, pretraining_tp=2, rms_norm_eps=1e-6,
        rope_scaling=None, rope_theta=5000000.0, sliding_window=None, use_sliding_window=False,
        layer_types=[_GLOBAL] * 36,
    ),
    "mistral-7b": _config(
        "MistralForCausalLM", "mistral", (32000, 4096, 14336, 32, 32, 8),
        max_position_embeddings=32768, rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096,
        tie_word_embeddings=False,
    ),
    "qwen3-0.6b": _config(
        "Qwen3ForCausalLM", "qwen3", (151936, 1024, 3072, 28, 16, 8),
        attention_bias=False, head_dim=128, max_position_embeddings=32768, max_window_layers=28, rms_norm_eps=1e-6,
        rope_scaling=None, rope_theta=1000000, sliding_window=None, use_sliding_window=False, tie_word_embeddings=True,
    ),
    "olmo2-1b": _config(
        "Olmo2ForCausalLM", "olmo2", (100352, 2048, 8192, 16, 16, 16),
        attention_bias=False, max_position_embeddings=4096, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=500000,
        tie_word_embeddings=False,
    ),
    "olmo3-7b": _config(
        "Olmo3ForCausalLM", "olmo3", (100278, 4096, 11008, 32, 32, 32),
        attention_bias=False, max_position_embeddings=65536, rms_norm_eps=1e-6, rope_theta=500000,
        rope_scaling={"attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0,
                      "original_max_position_embeddings": 8192, "rope_type": "yarn"},
        layer_types=[_LOCAL, _LOCAL, _LOCAL, _GLOBAL] * 8, sliding_window=4096, tie_word_embeddings=False,
    ),
    "exaone4-1.2b": _config(
        "Exaone4ForCausalLM", "exaone4", (102400, 2048, 4096, 30, 32, 8),
        head_dim=64, max_position_embeddings=65536, rms_norm_eps=1e-5, rope_theta=1000000,
        rope_scaling={"factor": 16.0, **_LLAMA3}, layer_types=[_GLOBAL] * 30, sliding_window=None,
        sliding_window_pattern=None, tie_word_embeddings=True,
    ),
    "exaone4-32b": _config(
        "Exaone4ForCausalLM", "exaone4", (102400, 5120, 27392, 64, 40, 8),
        head_dim=128, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=1000000,
        rope_scaling={"factor": 16.0, **_LLAMA3}, layer_types=[_LOCAL, _LOCAL, _LOCAL, _GLOBAL] * 16,
        sliding_window=4096, sliding_window_pattern="LLLG", tie_word_embeddings=False,
    ),
    "glm4-32b": _config(
        "Glm4ForCausalLM", "glm4", (151552, 6144, 23040, 61, 48, 2),
        attention_bias=False, head_dim=128, max_position_embeddings=32768, partial_rotary_factor=0.5,
        rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False,
    ),
    # With dense layers throughout.
    "deepseek-v3-attention": _config(
        "DeepseekV3ForCausalLM", "deepseek_v3", (129280, 7168, 18432, 61, 128, 128),
        attention_bias=False, aux_loss_alpha=0.001, ep_size=1, first_k_dense_replace=61, kv_lora_rank=512,
        max_position_embeddings=163840, moe_intermediate_size=2048, moe_layer_freq=1, n_group=8,
        n_routed_experts=256, n_shared_experts=1, norm_topk_prob=True, num_experts_per_tok=8,
        num_nextn_predict_layers=1, pretraining_tp=1, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64,
        rms_norm_eps=1e-6, rope_theta=10000, routed_scaling_factor=2.5, scoring_func="sigmoid", seq_aux=True,
        rope_scaling={"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                      "original_max_position_embeddings": 4096, "type": "yarn"},
        tie_word_embeddings=False, topk_group=4, topk_method="noaux_tc", v_head_dim=128,
    ),
}  # fmt: skip
