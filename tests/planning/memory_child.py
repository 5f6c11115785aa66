"""A worker's process: trains the trials it is told to, one after the other, and prints predicted and measured peaks."""

from __future__ import annotations

import json
import sys
from importlib import import_module

import torch


def main(text: str, cache_folder: str, folder: str) -> None:
    from fabric.data import TokenCache
    from fabric.planning.cost import peak_memory_bytes, process_bytes
    from fabric.planning.machine import WORKER_MODULES
    from fabric.planning.trial import TrialSpec
    from fabric.store import Store
    from fabric.train import loop
    from models.presets import PRESETS

    for module in WORKER_MODULES:
        import_module(module)
    torch.set_num_threads(1)
    data = {"corpus": {"kind": "files", "path": text}, "tokenizer": "bytes", "seq_len": 128}
    cache = TokenCache.open(cache_folder)
    for line in sys.stdin:
        preset, batch_size, seq_len, precision = json.loads(line)
        body = {
            "model": PRESETS[preset],
            "data": {**data, "seq_len": seq_len},
            "data_key": cache.key,
            "train": {
                "tokens": 2 * batch_size * seq_len,
                "batch_size": batch_size,
                "precision": precision,
                "optimizer": {"kind": "adamw", "lr": 1e-3},
                "schedule": {"kind": "cosine"},
                "objective": {"kind": "next_token" if PRESETS[preset].get("causal", True) else "denoise"},
            },
            "evaluate": {"times": 1, "val_tokens": 8 * seq_len, "final_val_tokens": 8 * seq_len,
                         "recall": False, "samples": None},
            "seed": 0,
        }  # fmt: skip
        spec = TrialSpec.model_validate(body)
        outcome = loop.run(spec, Store(folder).trial(spec.id), cache)
        print(
            json.dumps([peak_memory_bytes(spec), process_bytes(), outcome.final["peak_memory_bytes"]]),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
