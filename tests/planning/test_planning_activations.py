"""The bytes a step's activations take at its peak, predicted and allocated."""

import pytest
import torch
from torch.profiler import profile

from fabric.planning.cost import live_activation_bytes
from fabric.train.loss import sum_nll
from models import build, preset

MLA = {
    "kind": "mla",
    "n_heads": 4,
    "kv_latent_dim": 16,
    "qk_nope_dim": 16,
    "qk_rope_dim": 8,
    "v_head_dim": 16,
}
CONFIGS = {
    "smollm-tiny": preset("smollm-tiny"),
    "qwen3-tiny": preset("qwen3-tiny"),
    "olmo2-tiny": preset("olmo2-tiny"),
    "large vocabulary": preset("smollm-tiny", vocab_size=4096),
    "small vocabulary": preset("smollm-tiny", vocab_size=32),
    "window": preset("smollm-tiny", mixer={"kind": "mha", "n_heads": 4, "window": 16}),
    "mla": preset("smollm-tiny", mixer=MLA),
    "gelu, sandwich": preset("smollm-tiny", ffn={"kind": "gelu", "d_ff": 256}, norm_placement="sandwich"),
}


def peak_of_a_step(config, batch, n_tokens):
    model = build(config)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (batch, n_tokens + 1), generator=generator)

    def step():
        (sum_nll(model, ids[:, :-1], ids[:, 1:]) / ids.numel()).backward()

    step()  # gradients exist from here on
    with profile(profile_memory=True) as record:
        step()
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_alive_at_the_peak_of_a_step(name):
    config = CONFIGS[name]
    assert live_activation_bytes(config, 8, 64, "fp32") == pytest.approx(
        peak_of_a_step(config, 8, 64), rel=0.1
    )
