"""The token cache: every split as one flat stream of ids, with a manifest that says what it must be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fabric.data.corpus import SPLITS
from fabric.data.disk import sha256_of_file

if TYPE_CHECKING:
    from fabric.data.tokenizer import Tokenizer

SCHEMA_VERSION = 1


class TokenCache:
    """A prepared corpus, read-only. Documents follow each other in corpus order, each ended by EOS.

    Rows are windows on the stream: row i at length T is tokens [i·T, i·T + T + 1), inputs and targets
    overlapping by all but one, so one cache serves every row length. Memory-mapped; cheap to pickle (only the
    path travels).
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._streams: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, path: Path | str, key: str | None = None) -> TokenCache:
        """Open a cache folder (of examples: an `ExampleCache`) after checking its files' sizes and its tokenizer
        against the manifest.

        Raises ValueError naming the file that is missing, cut short or not the one the cache was built with,
        and when `key` is given and the cache is another one.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        if key is not None and manifest["key"] != key:
            raise ValueError(
                f"token cache {path} was built for other text, tokenizer or splits: its key is "
                f"{manifest['key'][:12]}…, asked for {key[:12]}…; prepare the data again"
            )
        for name, entry in manifest["files"].items():
            file = path / name
            size = file.stat().st_size if file.is_file() else None
            if size != entry["bytes"]:
                state = (
                    "is missing" if size is None else f"has {size} bytes, the manifest says {entry['bytes']}"
                )
                raise ValueError(
                    f"token cache {path} is damaged: {name} {state}; delete the folder, prepare again"
                )
        if manifest.get("rows") == "examples":
            from fabric.data.example_cache import ExampleCache

            return ExampleCache(path, manifest)
        found = hashlib.sha256((path / "tokenizer.json").read_bytes()).hexdigest()
        known = manifest["tokenizer"]["sha256"]
        if found != known:
            raise ValueError(
                f"the tokenizer in {path} does not match the cache: tokenizer.json has sha256 {found[:12]}…, "
                f"the cache was built with {known[:12]}…; delete the folder, prepare again"
            )
        return cls(path, manifest)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return TokenCache.open, (str(self.path),)

    @property
    def key(self) -> str:
        """The content address (`fabric.data.data_key` of the config it was built for)."""
        return str(self.manifest["key"])

    @property
    def vocab_size(self) -> int:
        """Number of ids; every token is below it."""
        return int(self.manifest["vocab_size"])

    @property
    def manifest_hash(self) -> str:
        """sha256 of the manifest file, which holds the sha256 of every other file."""
        return sha256_of_file(self.path / "manifest.json")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the cache was built with. Raises ValueError for examples that have ids of their own."""
        if self.manifest["tokenizer"] is None:
            raise ValueError(
                f"{self.path} holds examples of kind {self.manifest['examples']['kind']}, which make ids of their own: "
                "there is no tokenizer, and no text to generate or score"
            )
        from fabric.data.tokenizer import load_tokenizer

        return load_tokenizer(self.path)

    def tokens(self, split: str) -> np.ndarray:
        """The whole stream of a split, uint16 or uint32 [n_tokens], memory-mapped and read-only."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
        if split not in self._streams:
            dtype = np.dtype(self.manifest["dtype"])
            mapped = (
                np.memmap(self.path / f"{split}.bin", dtype, "r")
                if self._count(split)
                else np.empty(0, dtype)
            )
            self._streams[split] = np.asarray(mapped)  # slices of a plain array cost a third of a memmap's
        return self._streams[split]

    def _count(self, split: str) -> int:
        return int(self.manifest["splits"][split]["n_tokens"])

    def n_tokens(self, split: str) -> int:
        """Tokens in a split, EOS included."""
        return len(self.tokens(split))

    def n_rows(self, split: str, seq_len: int) -> int:
        """Whole rows of `seq_len` predicted tokens in a split; the tail that fills no row is not read."""
        return max(0, (self.n_tokens(split) - 1) // seq_len)

    def rows(self, split: str, seq_len: int, indices: Any) -> np.ndarray:
        """Rows by number: int64 [n, seq_len + 1]; `[:, :-1]` are inputs, `[:, 1:]` their targets.

        Raises ValueError for an index outside [0, n_rows).
        """
        stream, n_rows = self.tokens(split), self.n_rows(split, seq_len)
        wanted = np.asarray(indices, np.int64).ravel()
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= n_rows):
            raise ValueError(
                f"rows {wanted.min()} to {wanted.max()} asked for; {split} has {n_rows} of length {seq_len}"
            )
        out = np.empty((len(wanted), seq_len + 1), np.int64)
        for row, begin in zip(out, (wanted * seq_len).tolist()):
            row[:] = stream[begin : begin + seq_len + 1]
        return out

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [vocab]: UTF-8 bytes each id stands for, EOS and other special ids 0.

        `manifest["token_bytes_exact"]` says whether they add up to the text's length (byte-level tokenizers:
        yes).
        """
        return np.load(self.path / "token_bytes.npy", allow_pickle=False)

    def n_bytes(self, split: str, tokens: Any) -> float:
        """UTF-8 bytes that some tokens of a split (any shape) stand for: the divisor of bits per byte.

        Where a tokenizer's ids have no exact length (it drops or changes characters), the split's mean over all its
        text: its bytes over its tokens.
        """
        ids = np.asarray(tokens)
        if self.manifest["token_bytes_exact"]:
            return float(self.token_bytes[ids].sum(dtype=np.int64))
        whole = self.manifest["splits"][split]
        return float(ids.size * whole["n_bytes"] / whole["n_tokens"]) if whole["n_tokens"] else 0.0

    def verify(self, sha256: Callable[[Path], str] = sha256_of_file) -> None:
        """Compare every file's sha256, by default of the file as read now, with the manifest's.

        Raises ValueError naming the file.
        """
        for name, entry in self.manifest["files"].items():
            if sha256(self.path / name) != entry["sha256"]:
                raise ValueError(
                    f"token cache {self.path} is damaged: the contents of {name} changed; prepare again"
                )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not a token cache: it has no manifest.json; build it with `prepare`"
        ) from None
    except ValueError:
        raise ValueError(
            f"token cache {path} is damaged: manifest.json is not JSON; delete the folder, prepare again"
        ) from None
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"token cache {path} has schema_version {manifest.get('schema_version')!r}, this version reads "
            f"{SCHEMA_VERSION}; delete the folder, prepare again"
        )
    return manifest
