"""A tokenizer from the Hugging Face hub, kept in the cache folder once fetched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self

from fabric.data.disk import canonical_json, sha256_of, write_atomic
from fabric.data.tokenizer import Tokenizer, TokenizerConfig, tokenizer_from_json, vocab_size_of
from kernels.folders import at_home


class HubTokenizerConfig(TokenizerConfig):
    """A hub id (or a local model folder) read through transformers' `AutoTokenizer`, fast tokenizers only.

    The first use needs the network; after that the copy in `<cache_root>/tokenizers` is used, so a later
    change on the hub changes nothing. `revision` pins a commit or tag.
    """

    kind: Literal["hub"]
    name: str
    revision: str | None = None
    eos: str | None = None

    def resolved(self, base_dir: Path) -> Self:
        local = base_dir / at_home(Path(self.name))
        return self.model_copy(update={"name": str(local.resolve())}) if local.is_dir() else self

    def _snapshot(self, cache_root: Path) -> dict[str, str | None]:
        """{"json": tokenizer.json, "eos": its EOS token or None}, fetched when not there yet."""
        wanted: dict[str, Any] = {"name": self.name, "revision": self.revision}
        if Path(self.name, "tokenizer.json").is_file():
            wanted["sha256"] = hashlib.sha256(Path(self.name, "tokenizer.json").read_bytes()).hexdigest()
        kept = cache_root / "tokenizers" / f"{sha256_of(wanted)[:32]}.json"
        if kept.is_file():
            snapshot: dict[str, str | None] = json.loads(kept.read_text(encoding="utf-8"))
            return snapshot
        snapshot = self._fetch()
        write_atomic(kept, canonical_json(snapshot).encode())
        return snapshot

    def _fetch(self) -> dict[str, str | None]:
        from transformers import AutoTokenizer

        try:
            fetched = AutoTokenizer.from_pretrained(self.name, revision=self.revision or "main")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"tokenizer {self.name!r} could not be read from the Hugging Face hub "
                f"({str(error).splitlines()[0]}); check the id and the network, or give a local "
                "tokenizer.json"
            ) from None
        if not getattr(fetched, "is_fast", False):
            raise ValueError(
                f"tokenizer {self.name!r} has no fast form (tokenizer.json); give the path of a local "
                "tokenizer.json instead"
            )
        return {"json": fetched.backend_tokenizer.to_str(), "eos": fetched.eos_token}

    def vocab_size_in(self, cache_root: Path) -> int:
        return vocab_size_of(json.loads(self._snapshot(cache_root)["json"] or "{}"))

    def identity(self, cache_root: Path) -> dict[str, Any]:
        snapshot = self._snapshot(cache_root)
        digest = hashlib.sha256((snapshot["json"] or "").encode()).hexdigest()
        return {
            "kind": "file",
            "sha256": digest,
            "eos": self.eos or snapshot["eos"],
            "revision": self.REVISION,
        }

    def build(self, train_texts: Callable[[], Iterable[str]], cache_root: Path) -> Tokenizer:
        snapshot = self._snapshot(cache_root)
        return tokenizer_from_json(snapshot["json"] or "", self.eos or snapshot["eos"], self.name)
