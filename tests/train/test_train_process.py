"""Every generator's state is kept and put back: what an evaluation draws, training never notices."""

from __future__ import annotations

import random

import numpy as np
import torch

from fabric.train import process


def draws() -> tuple[float, ...]:
    return float(torch.rand(())), float(np.random.rand()), random.random(), float(np.random.randn())


def test_what_a_block_draws_is_not_noticed() -> None:
    process.seed_all(5)
    np.random.randn()  # leaves half a pair of normal numbers behind
    state = process.rng_state()
    expected = draws()
    process.set_rng_state(state)
    with process.rng_kept():
        inside = draws()
    assert inside == draws() == expected


def test_states_survive_a_checkpoint(tmp_path) -> None:
    process.seed_all(7)
    draws()
    torch.save(process.rng_state(), tmp_path / "state.pt")
    expected = draws()
    process.seed_all(8)
    process.set_rng_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draws() == expected
