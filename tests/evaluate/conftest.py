"""A small text, its byte-level cache, and a tiny model."""

import random
from pathlib import Path

import pytest
import torch

import models
from fabric.data import DataConfig, TokenCache, prepare

SEQ_LEN = 32


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> tuple[DataConfig, TokenCache]:
    folder: Path = tmp_path_factory.mktemp("evaluate-data")
    rng = random.Random(7)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "her", "dog", "run", "home"]
    documents = [" ".join(rng.choice(words) for _ in range(30)) + "." for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    body = {
        "corpus": {"kind": "files", "path": str(folder / "text.txt")},
        "tokenizer": "bytes",
        "seq_len": SEQ_LEN,
        "validation_fraction": 0.15,
        "test_fraction": 0.1,
    }
    config = DataConfig.model_validate(body)
    return config, prepare(config, folder / "cache", backend="inline")


@pytest.fixture(scope="session")
def cache(prepared) -> TokenCache:
    return prepared[1]


def model_body(cache: TokenCache, max_seq_len: int = 128) -> dict:
    return {
        "vocab_size": cache.vocab_size,
        "d_model": 32,
        "n_layers": 2,
        "max_seq_len": max_seq_len,
        "mixer": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2},
        "ffn": {"kind": "swiglu", "d_ff": 64},
        "init": {"std": 0.2},  # far from uniform, so that scores differ from one another
    }


@pytest.fixture
def model(cache) -> models.CausalLM:
    torch.manual_seed(3)
    return models.build(models.ModelConfig.model_validate(model_body(cache)))


@pytest.fixture
def body(cache) -> dict:
    return model_body(cache)
