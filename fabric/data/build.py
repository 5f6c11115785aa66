"""One building of a token cache, from the index of its documents to the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fabric.data.blocks import BLOCK_BYTES, BlockCount, BlockWork, create_stream, cut_blocks, offsets_of
from fabric.data.cache import SCHEMA_VERSION
from fabric.data.config import DataConfig
from fabric.data.corpus import SPLITS, Source
from fabric.data.disk import canonical_json, sha256_of_file, write_atomic
from fabric.data.documents import DocumentIndex, index_documents, read_documents
from fabric.data.splits import DROPPED, NOT_GIVEN, TRAIN, assign_splits
from fabric.data.tokenizer import Tokenizer

PACKING_VERSION = 1  # raise when the same inputs would give other token files
RAY_FROM_BYTES = 50_000_000
Progress = Callable[[str, float], None]


def splits_of(config: DataConfig, sources: list[Source], index: DocumentIndex) -> np.ndarray:
    """The split of every document (see `fabric.data.splits`)."""
    published = np.array([NOT_GIVEN if s.split is None else SPLITS.index(s.split) for s in sources], np.int8)
    fractions = (config.validation_fraction, config.test_fraction)
    return assign_splits(index.digest, index.n_bytes, published[index.source], *fractions, config.split_seed)


def split_counts(index: DocumentIndex, splits: np.ndarray) -> dict[str, dict[str, int]]:
    """Documents and UTF-8 bytes per split."""
    return {
        name: {"n_documents": int((splits == i).sum()), "n_bytes": int(index.n_bytes[splits == i].sum())}
        for i, name in enumerate(SPLITS)
    }


@dataclass(frozen=True)
class Build:
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
        (self.temp / "parts").mkdir()
        index = index_documents(self.sources, lambda part: self.progress("index", part))
        splits = splits_of(self.config, self.sources, index)
        tokenizer = self.config.tokenizer.build(lambda: self._train_texts(index, splits), self.root)
        write_atomic(self.temp / "tokenizer.json", tokenizer.json.encode())
        np.save(self.temp / "token_bytes.npy", tokenizer.token_bytes())
        dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        work = BlockWork(str(self.temp), dtype, tokenizer.eos_token)
        counts = self._tokenise(work, index, splits, backend, n_blocks)
        (self.temp / "parts").rmdir()
        self._write_manifest(index, splits, tokenizer, dtype, counts)

    def _train_texts(self, index: DocumentIndex, splits: np.ndarray) -> Iterator[str]:
        """Training documents; every k-th of them when they exceed the tokenizer's `max_train_bytes`."""
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
        n_bytes = int(documents.n_bytes.sum())
        spread = self._with_ray(backend, n_bytes)
        n_tasks = n_blocks or -(-n_bytes // BLOCK_BYTES)  # many small files are not as many tasks
        if spread:
            from fabric.runtime.data import place_with_ray, tokenize_with_ray

            counts = tokenize_with_ray(work, blocks, n_tasks, lambda part: self.progress("tokenise", part))
        else:
            counts = []
            for block in blocks:
                counts.append(work.tokenise(block))
                self.progress("tokenise", len(counts) / len(blocks))
        offsets, totals = offsets_of(counts)
        for split, total in enumerate(totals):
            create_stream(work.stream(split), total * np.dtype(work.dtype).itemsize)
        if spread:
            place_with_ray(work, offsets, n_tasks)
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
        per_split: dict[str, dict[str, Any]] = dict(split_counts(index, splits))
        exact = True
        for number, entry in enumerate(per_split.values()):
            entry["n_tokens"] = sum(c.n_tokens[number] for c in counts)
            exact = exact and entry["n_bytes"] == sum(c.token_bytes[number] for c in counts)
        about = {
            "packing": PACKING_VERSION,
            "dtype": dtype,
            "token_bytes_exact": exact,
            "splits": per_split,
            "n_dropped_documents": int((splits == DROPPED).sum()),
            "sources": self.identities,
        }
        write_manifest(self.temp, self.key, tokenizer, self.config.tokenizer.identity(self.root), about)


def write_manifest(
    folder: Path, key: str, tokenizer: Tokenizer, identity: dict[str, Any], about: dict[str, Any]
) -> None:
    """Write a cache's manifest, the last of its files: what it is, and the hash of every other file."""
    files = sorted(f for f in folder.iterdir() if f.is_file())
    eos = {"eos_id": tokenizer.eos_id, "eos_token": tokenizer.eos_token}
    manifest = {
        **about,
        "schema_version": SCHEMA_VERSION,
        "key": key,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": {"identity": identity, "sha256": tokenizer.sha256, **eos},
        "files": {f.name: {"bytes": f.stat().st_size, "sha256": sha256_of_file(f)} for f in files},
    }
    write_atomic(folder / "manifest.json", canonical_json(manifest).encode())
