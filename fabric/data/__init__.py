"""Corpora, tokenizers, token cache, exact order.

Names are imported on first use, so that `import fabric.data` costs nothing: training processes read a cache
with numpy alone, and only preparation imports `tokenizers`, `pyarrow`, `datasets` or `transformers`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric.data.cache import TokenCache
    from fabric.data.config import DataConfig, resolve_paths, vocab_size
    from fabric.data.example_cache import ExampleCache
    from fabric.data.order import Batches
    from fabric.data.preparation import data_key, describe, prepare
    from fabric.data.smollm2 import get_smollm2
    from fabric.data.tokenizer import load_tokenizer

_HOME = {
    "Batches": "order",
    "DataConfig": "config",
    "ExampleCache": "example_cache",
    "TokenCache": "cache",
    "data_key": "preparation",
    "describe": "preparation",
    "get_smollm2": "smollm2",
    "load_tokenizer": "tokenizer",
    "prepare": "preparation",
    "resolve_paths": "config",
    "vocab_size": "config",
}

__all__ = [
    "Batches",
    "DataConfig",
    "ExampleCache",
    "TokenCache",
    "data_key",
    "describe",
    "get_smollm2",
    "load_tokenizer",
    "prepare",
    "resolve_paths",
    "vocab_size",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fabric.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fabric.data.{_HOME[name]}"), name)
    globals()[name] = value
    return value
