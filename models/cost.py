"""Costs of a model in closed form, without building it: parameters, FLOPs, state, activation memory."""

from __future__ import annotations

from collections import Counter

from models.config import ModelConfig
from models.residual import norms_per_sublayer

TOKEN_ID_BYTES = 8


def n_params(config: ModelConfig) -> int:
    """Parameters, each once: a tied output matrix is the embedding. An encoder's heads and pooler are not its own."""
    D = config.d_model
    layer = config.ffn.n_params(D)
    layer += 2 * norms_per_sublayer(config.norm_placement) * config.norm.n_params(D)
    mixers = sum(mixer.n_params(D) * n for mixer, n in Counter(config.mixers).items())
    layer += (config.short_conv or 0) * D
    embeddings = config.vocab_size * D * (1 if config.tie_embeddings else 2)
    embeddings += D * (config.token_types + (config.max_seq_len if config.positions == "learned" else 0))
    embeddings += config.norm.n_params(D) if config.embedding_norm else 0
    final = 0 if config.norm_placement == "postln" else config.norm.n_params(D)
    return embeddings + mixers + config.n_layers * layer + final


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Forward FLOPs per token of matrix products, averaged over a text of `seq_len` tokens; a training step
    is 3×.

    A multiply-add is 2; attention counts visible pairs only; short convolutions are counted; norms, activations and the
    softmax are left out. An
    encoder has no output matrix; whatever stands on it counts its own.
    """
    D, ffn = config.d_model, config.ffn.flops_per_token(config.d_model)
    total = 0.0 if not config.causal else 2.0 * D * config.vocab_size
    for mixer, n in Counter(config.mixers).items():
        total += n * (mixer.flops_per_token(D, seq_len) + ffn)
        if not config.causal:
            # Every pair of tokens is seen from its other end too, but for a token and itself.
            total += n * mixer.flops_per_pair(D) * (mixer.mean_visible_keys(seq_len) - 1)
    return total + config.n_layers * 2 * (config.short_conv or 0) * D


def state_bytes(config: ModelConfig, seq_len: int, dtype_bytes: int = 2) -> int:
    """Bytes all layers remember of one text of `seq_len` tokens while decoding (the key/value cache); an encoder
    does not decode.
    """
    if not config.causal:
        return 0
    conv = config.n_layers * min(seq_len, config.short_conv or 0) * config.d_model * dtype_bytes
    return conv + sum(
        n * mixer.state_bytes(config.d_model, seq_len, dtype_bytes)
        for mixer, n in Counter(config.mixers).items()
    )


def saved_bytes(config: ModelConfig, batch: int, seq_len: int, dtype_bytes: int = 4) -> int:
    """Bytes autograd keeps between forward and backward, from the ids to the final hidden states (these
    included).

    Parameters and position tables are not counted. Holds for one dtype throughout (no autocast) and our own kernels
    (texts of 32 tokens and more on a CPU); PyTorch's attention keeps a mask for windows, and pads narrow values.
    """
    D, norm = config.d_model, config.norm.saved_statistics()
    # Each sublayer keeps the input of its products and of its norms, and the norms' statistics.
    n_norms = norms_per_sublayer(config.norm_placement)
    sublayer = (1 + n_norms) * D + n_norms * norm
    layer = 2 * sublayer + config.ffn.saved_elements(D)
    mixers = sum(mixer.saved_elements(D) * n for mixer, n in Counter(config.mixers).items())
    final = 0 if config.norm_placement == "postln" else D + norm
    embedding = D + norm if config.embedding_norm else 0
    per_token = (embedding + config.n_layers * layer + mixers + final + D) * dtype_bytes + TOKEN_ID_BYTES
    # A short convolution keeps its input with the zeros in front; its output is what the products keep.
    conv = 0 if config.short_conv is None else config.n_layers * (seq_len + config.short_conv - 1) * D
    return batch * (seq_len * per_token + conv * dtype_bytes)
