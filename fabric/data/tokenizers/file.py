"""Any local `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from fabric.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, vocab_size_of
from kernels.folders import at_home


class FileConfig(TokenizerConfig):
    """A `tokenizer.json` of the `tokenizers` library, or a folder that holds one.

    `eos` names the token that ends a document; by default the first of the usual names that the file has.
    """

    kind: Literal["file"]
    path: Path
    eos: str | None = None

    def _file(self) -> Path:
        path = at_home(self.path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"no tokenizer at {file}; give a tokenizer.json or a folder that holds one")
        return file

    def vocab_size_in(self, cache_root: Path) -> int:
        stat = self._file().stat()
        return _vocab_size(self._file(), stat.st_size, stat.st_mtime_ns)

    def identity(self, cache_root: Path) -> dict[str, Any]:
        digest = hashlib.sha256(self._file().read_bytes()).hexdigest()
        return {"kind": "file", "sha256": digest, "eos": self.eos, "revision": self.REVISION}

    def build(self, train_texts: Callable[[], Iterable[str]], cache_root: Path) -> Tokenizer:
        return load_tokenizer(self._file(), self.eos)


@lru_cache(maxsize=16)
def _vocab_size(file: Path, size: int, mtime_ns: int) -> int:
    try:
        return vocab_size_of(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is not a tokenizer.json of the tokenizers library") from None
