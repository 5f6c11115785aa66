"""Rows that share beginnings: hidden states and gradients are those of every row by itself."""

from __future__ import annotations

import pytest
import torch

from models import ModelConfig, build
from models.shared_rows import SharedRows

# The line holds 3 1 | 4 1 | 5 | 9: texts 3 1 4 1, 3 1 5 and 3 1 4 9.
IDS = [3, 1, 4, 1, 5, 9]
ROWS = [[0, 1, 2, 3], [0, 1, 4], [0, 1, 2, 5]]
GQA = {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2, "qk_norm": "head"}
MLA = {"kind": "mla", "n_heads": 4, "kv_latent_dim": 8, "qk_nope_dim": 8, "qk_rope_dim": 8, "v_head_dim": 8}
KINDS = {
    "gqa": {"mixer": GQA},
    "mla": {"mixer": MLA},
    "window": {"mixer": {"kind": "mha", "n_heads": 4, "window": 2}},
    "learned": {"mixer": {"kind": "mha", "n_heads": 4, "position": "nope"}, "positions": "learned"},
    "conv": {"mixer": GQA, "short_conv": 3},
    "hybrid": {"mixer": GQA, "mixer_pattern": [{}, MLA]},
}


def model_of(**body):
    given = {"vocab_size": 11, "d_model": 32, "n_layers": 2, "max_seq_len": 16, "init": {"std": 0.3}, **body}
    return build(ModelConfig.model_validate({**given, "ffn": {"kind": "swiglu", "d_ff": 48}}))


def test_a_line_becomes_rows_and_back():
    shared = SharedRows.of(ROWS)
    assert shared.positions_N.tolist() == [0, 1, 2, 3, 2, 3]
    x_1N = torch.arange(6.0)[None, :, None]
    assert shared.spread(x_1N)[..., 0].tolist() == [[0, 1, 2, 3], [0, 1, 4, 0], [0, 1, 2, 5]]
    assert torch.equal(shared.line(shared.spread(x_1N)), x_1N)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_before", [0, 3])
def test_hidden_states_are_those_of_each_row_by_itself(kind, n_before):
    model = model_of(**KINDS[kind]).eval()
    before = torch.tensor([[2, 7, 1]])[:, :n_before]
    cache = model.new_cache(1, 16)
    if n_before:
        model.hidden(before, cache=cache)
    shared = SharedRows.of(ROWS)
    copies = cache.taken(torch.zeros(3, dtype=torch.long), n_before + 4) if n_before else None
    with torch.no_grad():
        hidden_ND = model.hidden(torch.tensor([IDS]), cache=copies, shared=shared)[0]
        for row in ROWS:
            alone = torch.cat((before, torch.tensor([[IDS[i] for i in row]])), dim=1)
            want_TD = model.hidden(alone)[0, n_before:]
            torch.testing.assert_close(hidden_ND[row], want_TD, atol=2e-5, rtol=0)
    if copies is not None:  # and the cache holds the rows, to go on from
        assert copies.n_tokens == n_before + 4
        with torch.no_grad():
            after = model.hidden(torch.tensor([[6]] * 3), cache=copies_of(copies))
            alone = torch.cat((before, torch.tensor([[IDS[i] for i in ROWS[0]] + [6]])), dim=1)
            torch.testing.assert_close(after[0, 0], model.hidden(alone)[0, -1], atol=2e-5, rtol=0)


def copies_of(cache):
    return cache.taken(torch.arange(3), cache.n_tokens + 1)


def test_gradients_are_those_of_each_row_by_itself():
    model = model_of(**KINDS["gqa"])
    weights = {place: torch.randn(32, generator=torch.Generator().manual_seed(place)) for place in range(6)}
    line = model.hidden(torch.tensor([IDS]), shared=SharedRows.of(ROWS))[0]
    sum((line[i] * w).sum() for i, w in weights.items()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    seen: set[int] = set()
    for row in ROWS:
        hidden_TD = model.hidden(torch.tensor([[IDS[i] for i in row]]))[0]
        new = [(t, i) for t, i in enumerate(row) if i not in seen]
        seen |= set(row)
        sum((hidden_TD[t] * weights[i]).sum() for t, i in new).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, atol=1e-4, rtol=1e-4, msg=name)
