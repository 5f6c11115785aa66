"""Bytes: 256 values and EOS, nothing to train, exact bits per byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from fabric.data.tokenizer import ByteTokenizer, Tokenizer, TokenizerConfig


class BytesConfig(TokenizerConfig):
    """UTF-8 bytes as ids 0-255, EOS 256: a vocabulary of 257."""

    kind: Literal["bytes"]

    def vocab_size_in(self, cache_root: Path) -> int:
        return ByteTokenizer.vocab_size

    def identity(self, cache_root: Path) -> dict[str, Any]:
        return {"kind": self.kind, "revision": self.REVISION}

    def build(self, train_texts: Callable[[], Iterable[str]], cache_root: Path) -> Tokenizer:
        return ByteTokenizer()
