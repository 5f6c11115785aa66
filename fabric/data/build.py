"""One building of a token cache, from the index of its documents to the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fabric.data.blocks import BLOCK_BYTES, BlockCount, BlockWork, counted, create_stream, offsets_of
from fabric.data.building import WORK
from fabric.data.cache import SCHEMA_VERSION
from fabric.data.config import DataConfig
from fabric.data.corpus import SPLITS, Source
from fabric.data.disk import canonical_json, sha256_of_file, write_atomic
from fabric.data.documents import read_documents
from fabric.data.index import Index
from fabric.data.splits import TRAIN
from fabric.data.tokenizer import Tokenizer, tokenizer_from_json

PACKING_VERSION = 1  # raise when the same inputs would give other token files
RAY_FROM_BYTES = 50_000_000
Progress = Callable[[str, float], None]


def shares_of(config: DataConfig) -> tuple[float, float, int]:
    """Validation and test fractions, and the seed they are cut by."""
    return config.validation_fraction, config.test_fraction, config.split_seed


def split_counts(index: Index) -> dict[str, dict[str, int]]:
    """Documents and UTF-8 bytes per split."""
    total = np.zeros((2, len(SPLITS)), np.int64)
    for _, documents in index.documents():
        total += np.array(counted(documents))
    n_documents, n_bytes = total.tolist()
    return {name: {"n_documents": n_documents[i], "n_bytes": n_bytes[i]} for i, name in enumerate(SPLITS)}


@dataclass(frozen=True)
class Preparation:
    """What a corpus is prepared from, in the folder `temp`."""

    config: DataConfig
    root: Path
    sources: list[Source]
    identities: list[dict[str, Any]]
    key: str
    temp: Path
    progress: Progress


class Build(Preparation):
    """One building of a cache, or the rest of one that was killed."""

    def run(self, backend: str, n_blocks: int | None) -> None:
        """Index, split, make the tokenizer, tokenise, place, write the manifest last."""
        (self.temp / WORK / "parts").mkdir(exist_ok=True)
        n_bytes = sum(Path(source.path).stat().st_size for source in self.sources)
        index = Index.found(self.temp / WORK, self.sources) or Index.write(
            self.temp / WORK,
            self.sources,
            n_bytes / n_blocks if n_blocks else BLOCK_BYTES,
            shares_of(self.config),
            partial(self.progress, "index"),
        )
        tokenizer = self._tokenizer(index)
        dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        work = BlockWork(str(self.temp), dtype, tokenizer.eos_token)
        counts = self._tokenise(work, index, self._with_ray(backend, n_bytes), n_blocks)
        self._write_manifest(tokenizer, dtype, counts)

    def _tokenizer(self, index: Index) -> Tokenizer:
        """The tokenizer, made now or by the build that was killed."""
        file, made = self.temp / "tokenizer.json", self.temp / WORK / "tokenizer.json"
        if made.is_file():
            return tokenizer_from_json(file.read_text(encoding="utf-8"), json.loads(made.read_text())["eos"])
        tokenizer = self.config.tokenizer.build(lambda: self._train_texts(index), self.root)
        write_atomic(file, tokenizer.json.encode())
        np.save(self.temp / "token_bytes.npy", tokenizer.token_bytes())
        write_atomic(made, json.dumps({"eos": tokenizer.eos_token}).encode())
        return tokenizer

    def _train_texts(self, index: Index) -> Iterator[str]:
        """Training documents; every k-th of them when they exceed the tokenizer's `max_train_bytes`."""
        limit = getattr(self.config.tokenizer, "max_train_bytes", None)
        every = 1
        if limit is not None:
            every = max(1, -(-split_counts(index)["train"]["n_bytes"] // limit))
        seen = 0
        for block, documents in index.documents():
            self.progress("tokenizer", block.number / len(index.blocks))
            mine = np.flatnonzero(documents.splits == TRAIN)
            chosen = mine[-seen % every :: every]
            seen += len(mine)
            if len(chosen):
                yield from read_documents(block.source, documents.starts[chosen], documents.ends[chosen])
        self.progress("tokenizer", 1.0)

    def _tokenise(
        self, work: BlockWork, index: Index, spread: bool, n_blocks: int | None
    ) -> list[BlockCount]:
        blocks = index.blocks
        n_bytes = sum(Path(source.path).stat().st_size for source in self.sources)
        n_tasks = n_blocks or -(-n_bytes // BLOCK_BYTES)  # many small files are not as many tasks
        if spread:
            from fabric.runtime.data import place_with_ray, tokenize_with_ray

            counts = tokenize_with_ray(work, blocks, n_tasks, partial(self.progress, "tokenise"))
        else:
            counts = []
            for block in blocks:
                counts.append(work.tokenise(block))
                self.progress("tokenise", len(counts) / len(blocks))
        offsets, totals = offsets_of(counts)
        for split, total in enumerate(totals):
            create_stream(work.stream(split), total * np.dtype(work.dtype).itemsize)
        if spread:
            place_with_ray(work, offsets, n_tasks, partial(self.progress, "place"))
        else:
            for number, offset in enumerate(offsets):
                work.place(number, offset)
                self.progress("place", (number + 1) / len(offsets))
        return counts

    def _with_ray(self, backend: str, n_bytes: int) -> bool:
        if backend == "inline" or (backend == "auto" and n_bytes < RAY_FROM_BYTES):
            return False
        from fabric.runtime.data import has_free_cpu, is_connected

        if is_connected():
            return backend == "ray" or has_free_cpu()
        if backend == "ray":
            raise ValueError(
                "backend 'ray' needs a running Ray session; call ray.init() first, or use 'inline'"
            )
        return False

    def _write_manifest(self, tokenizer: Tokenizer, dtype: str, counts: list[BlockCount]) -> None:
        per_split: dict[str, dict[str, int]] = {}
        exact = True
        for number, name in enumerate(SPLITS):
            keys = ("n_documents", "n_bytes", "n_tokens")
            per_split[name] = {key: sum(getattr(c, key)[number] for c in counts) for key in keys}
            exact = exact and per_split[name]["n_bytes"] == sum(c.token_bytes[number] for c in counts)
        about = {
            "packing": PACKING_VERSION,
            "dtype": dtype,
            "token_bytes_exact": exact,
            "splits": per_split,
            "n_dropped_documents": sum(c.n_dropped for c in counts),
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
