"""From a `DataConfig` to a token cache on disk: index documents, split them, make the tokenizer, write the
ids.

    <cache_root>/tokens/<key>/   manifest.json  tokenizer.json  token_bytes.npy  train.bin  validation.bin
    test.bin

The folder is content-addressed, built under another name and renamed, so it is whole or not there.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fabric.data.blocks import BlockCount, BlockWork, create_stream, cut_blocks, offsets_of
from fabric.data.cache import SCHEMA_VERSION, TokenCache
from fabric.data.config import DataConfig
from fabric.data.corpus import SPLITS, Source
from fabric.data.disk import (
    beside,
    canonical_json,
    default_cache_root,
    remembered_sha256,
    sha256_of,
    sha256_of_file,
    write_atomic,
)
from fabric.data.documents import DocumentIndex, index_documents, read_documents
from fabric.data.splits import DROPPED, NOT_GIVEN, TRAIN, assign_splits
from fabric.data.tokenizer import Tokenizer

PACKING_VERSION = 1  # raise when the same inputs would give other token files
RAY_FROM_BYTES = 50_000_000
ABANDONED_SECONDS = 2 * 24 * 3600
Progress = Callable[[str, float], None]


def data_key(config: DataConfig, cache_root: Path | str | None = None) -> str:
    """The content address of a config's tokens: sha256 (hex) over text, document rule, tokenizer and splits.

    Left out: paths and names (the same bytes elsewhere are the same data), and `seq_len`, because rows of any
    length are windows on one flat stream. Hashes of large files are remembered in `cache_root` (default:
    `default_cache_root()`) under path, size and change time.
    """
    root = Path(cache_root) if cache_root else default_cache_root()
    return _key(config, _identities(config.corpus.sources(root), root), root)


def prepare(
    config: DataConfig,
    cache_root: Path | str,
    backend: str = "auto",
    n_blocks: int | None = None,
    progress: Progress | None = None,
) -> TokenCache:
    """The token cache of a config, built when it is not there yet.

    `backend`: `inline` works in this process; `ray` spreads the blocks with Ray Data over the session the
    caller started; `auto` is `ray` from 50 MB of text when there is a session, else `inline`. `n_blocks` cuts
    the work otherwise than by 8 MiB; it never changes the result. `progress(stage, fraction)` is called as
    work is done. Raises ValueError naming the file or setting at fault. Safe to run several times at once on
    one folder.
    """
    if backend not in ("auto", "inline", "ray"):
        raise ValueError(f"backend {backend!r} is not known; allowed: auto, inline, ray")
    if n_blocks is not None and n_blocks < 1:
        raise ValueError(f"n_blocks {n_blocks} must be at least 1")
    root = Path(cache_root).expanduser().resolve()
    sources = config.corpus.sources(root)
    identities = _identities(sources, root)
    key = _key(config, identities, root)
    final = root / "tokens" / key
    if (found := _open_or_set_aside(final, key)) is not None:
        return found
    _remove_abandoned(final.parent)
    temp = beside(final, "building")
    (temp / "parts").mkdir(parents=True)
    try:
        _Build(config, root, sources, identities, key, temp, progress or (lambda _stage, _part: None)).run(
            backend, n_blocks
        )
        return _publish(temp, final, key)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def describe(config: DataConfig, cache_root: Path | str) -> dict[str, Any]:
    """What a config's data is, as plain values: key, state of the cache (built | absent | damaged), path,
    vocabulary, and per split documents, bytes, and (when built) tokens and bytes per token."""
    root = Path(cache_root).expanduser().resolve()
    sources = config.corpus.sources(root)
    key = _key(config, _identities(sources, root), root)
    path = root / "tokens" / key
    about: dict[str, Any] = {
        "key": key,
        "path": str(path),
        "corpus": config.corpus.kind,
        "files": len(sources),
    }
    about |= {"tokenizer": config.tokenizer.kind, "vocab_size": config.tokenizer.vocab_size_in(root)}
    try:
        manifest = TokenCache.open(path, key).manifest
    except ValueError as error:
        index = index_documents(sources)
        counts = _split_counts(index, _splits(config, sources, index))
        return about | {
            "state": "damaged" if path.is_dir() else "absent",
            "reason": str(error),
            "splits": counts,
        }
    splits = {name: dict(entry) for name, entry in manifest["splits"].items()}
    for entry in splits.values():
        entry["bytes_per_token"] = entry["n_bytes"] / entry["n_tokens"] if entry["n_tokens"] else None
    return about | {
        "state": "built",
        "splits": splits,
        "n_dropped_documents": manifest["n_dropped_documents"],
    }


def _identities(sources: list[Source], root: Path) -> list[dict[str, Any]]:
    return [s.identity(remembered_sha256(Path(s.path), root)) for s in sources]


def _key(config: DataConfig, identities: list[dict[str, Any]], root: Path) -> str:
    return sha256_of(
        {
            "packing": PACKING_VERSION,
            "corpus": identities,
            "tokenizer": config.tokenizer.identity(root),
            "splits": [config.validation_fraction, config.test_fraction, config.split_seed],
        }
    )


def _splits(config: DataConfig, sources: list[Source], index: DocumentIndex) -> np.ndarray:
    published = np.array([NOT_GIVEN if s.split is None else SPLITS.index(s.split) for s in sources], np.int8)
    fractions = (config.validation_fraction, config.test_fraction)
    return assign_splits(index.digest, index.n_bytes, published[index.source], *fractions, config.split_seed)


def _split_counts(index: DocumentIndex, splits: np.ndarray) -> dict[str, dict[str, int]]:
    return {
        name: {"n_documents": int((splits == i).sum()), "n_bytes": int(index.n_bytes[splits == i].sum())}
        for i, name in enumerate(SPLITS)
    }


def _open_or_set_aside(final: Path, key: str) -> TokenCache | None:
    """The cache if it is there and sound; a damaged one is removed, with a warning, to be built again."""
    if not final.is_dir():
        return None
    try:
        return TokenCache.open(final, key)
    except ValueError as error:
        warnings.warn(f"{error} (building it again now)", stacklevel=3)
    aside = beside(final, "damaged")
    os.rename(final, aside)
    shutil.rmtree(aside, ignore_errors=True)
    return None


def _remove_abandoned(folder: Path) -> None:
    """Delete what builds killed more than two days ago left behind."""
    for left in [*folder.glob(".building-*"), *folder.glob(".damaged-*")]:
        newest = max((f.stat().st_mtime for f in [left, left / "parts"] if f.exists()), default=time.time())
        if time.time() - newest > ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _publish(temp: Path, final: Path, key: str) -> TokenCache:
    for file in temp.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    try:
        os.rename(temp, final)
    except OSError:
        if not final.is_dir():  # else another process was first, with the same bytes
            raise
    return TokenCache.open(final, key)


@dataclass(frozen=True)
class _Build:
    """One building of a cache, in the folder `temp`."""

    config: DataConfig
    root: Path
    sources: list[Source]
    identities: list[dict[str, Any]]
    key: str
    temp: Path
    progress: Progress

    def run(self, backend: str, n_blocks: int | None) -> None:
        """Index, split, make the tokenizer, tokenise, place, write the manifest last."""
        index = index_documents(self.sources, lambda part: self.progress("index", part))
        splits = _splits(self.config, self.sources, index)
        tokenizer = self.config.tokenizer.build(lambda: self._train_texts(index, splits), self.root)
        write_atomic(self.temp / "tokenizer.json", tokenizer.json.encode())
        np.save(self.temp / "token_bytes.npy", tokenizer.token_bytes())
        dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        work = BlockWork(str(self.temp), dtype, tokenizer.eos_token)
        counts = self._tokenise(work, index, splits, backend, n_blocks)
        (self.temp / "parts").rmdir()
        self._write_manifest(index, splits, tokenizer, dtype, counts)

    def _train_texts(self, index: DocumentIndex, splits: np.ndarray) -> Iterator[str]:
        """Training documents; every k-th of them when the tokenizer's `max_train_bytes` is smaller than the
        text."""
        chosen = np.flatnonzero(splits == TRAIN)
        limit = getattr(self.config.tokenizer, "max_train_bytes", None)
        if limit is not None:
            chosen = chosen[:: max(1, -(-int(index.n_bytes[chosen].sum()) // limit))]
        self.progress("tokenizer", 0.0)
        for number, source in enumerate(self.sources):
            mine = chosen[index.source[chosen] == number]
            if len(mine):
                yield from read_documents(source, index.start[mine], index.end[mine])
        self.progress("tokenizer", 1.0)

    def _tokenise(
        self, work: BlockWork, index: DocumentIndex, splits: np.ndarray, backend: str, n_blocks: int | None
    ) -> list[BlockCount]:
        kept = splits != DROPPED
        documents = DocumentIndex(
            *(getattr(index, f)[kept] for f in ("source", "start", "end", "n_bytes", "digest"))
        )
        blocks = cut_blocks(documents, splits[kept], self.sources, n_blocks)
        spread = self._with_ray(backend, int(documents.n_bytes.sum()))
        if spread:
            from fabric.runtime.data import place_with_ray, tokenize_with_ray

            counts = tokenize_with_ray(work, blocks, n_blocks, lambda part: self.progress("tokenise", part))
        else:
            counts = []
            for block in blocks:
                counts.append(work.tokenise(block))
                self.progress("tokenise", len(counts) / len(blocks))
        offsets, totals = offsets_of(counts)
        for split, total in enumerate(totals):
            create_stream(work.stream(split), total * np.dtype(work.dtype).itemsize)
        if spread:
            place_with_ray(work, offsets, n_blocks)
        else:
            for number, offset in enumerate(offsets):
                work.place(number, offset)
        self.progress("place", 1.0)
        return counts

    def _with_ray(self, backend: str, n_bytes: int) -> bool:
        if backend == "inline" or (backend == "auto" and n_bytes < RAY_FROM_BYTES):
            return False
        from fabric.runtime.data import is_connected

        if is_connected():
            return True
        if backend == "ray":
            raise ValueError(
                "backend 'ray' needs a running Ray session; call ray.init() first, or use 'inline'"
            )
        return False

    def _write_manifest(
        self,
        index: DocumentIndex,
        splits: np.ndarray,
        tokenizer: Tokenizer,
        dtype: str,
        counts: list[BlockCount],
    ) -> None:
        per_split = _split_counts(index, splits)
        exact = True
        for number, entry in enumerate(per_split.values()):
            entry["n_tokens"] = sum(c.n_tokens[number] for c in counts)
            exact = exact and entry["n_bytes"] == sum(c.token_bytes[number] for c in counts)
        files = sorted(f for f in self.temp.iterdir() if f.is_file())
        eos = {"eos_id": tokenizer.eos_id, "eos_token": tokenizer.eos_token}
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "key": self.key,
            "packing": PACKING_VERSION,
            "dtype": dtype,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": {
                "identity": self.config.tokenizer.identity(self.root),
                "sha256": tokenizer.sha256,
                **eos,
            },
            "token_bytes_exact": exact,
            "splits": per_split,
            "n_dropped_documents": int((splits == DROPPED).sum()),
            "sources": self.identities,
            "files": {f.name: {"bytes": f.stat().st_size, "sha256": sha256_of_file(f)} for f in files},
        }
        write_atomic(self.temp / "manifest.json", canonical_json(manifest).encode())
