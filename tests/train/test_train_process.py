"""Every generator's state is kept and put back: what an evaluation draws, training never notices."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from fabric.train import process

ROOT = Path(__file__).resolve().parents[2]


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


def test_training_does_not_load_torchs_compiler(tmp_path):
    """It is what most of a process's start would be."""
    code = """
import sys, torch
import fabric.runtime.worker
from train_kit import make_cache, make_trial
from pathlib import Path
from fabric.store import Store
from fabric.train import loop
folder = Path(sys.argv[1])
config, cache = make_cache(folder)
for precision in ("fp32", "bf16"):
    trial = make_trial(config, cache, steps=2, precision=precision, model={"n_layers": 2})
    assert loop.run(trial, Store(folder).trial(trial.id), cache).state == "finished"
print([name for name in ("torch._dynamo", "torch._inductor", "triton", "sympy") if name in sys.modules])
"""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "[]\n", done.stderr[-2000:]
