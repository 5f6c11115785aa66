"""Preparing a stream: a folder like a token cache's, with everything but the training tokens.

    <cache_root>/tokens/<key>/   manifest.json tokenizer.json token_bytes.npy {train,validation,test}.bin
                                 units.npy held_out.npy

`train.bin` is empty, `units.npy` says which stretches of which files the units are, `held_out.npy` holds the digests
of held-out texts that were published.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fabric.data.blocks import batches
from fabric.data.build import Preparation, write_manifest
from fabric.data.config import DataConfig, StreamConfig
from fabric.data.corpus import SPLITS, CorpusError, Source
from fabric.data.disk import sha256_of, write_atomic
from fabric.data.documents import digest_of
from fabric.data.held_out import HoldOut
from fabric.data.order import permute
from fabric.data.places import ends_sha256, of_each
from fabric.data.splits import TEST, TRAIN, VALIDATION
from fabric.data.tokenizer import Tokenizer
from fabric.data.units import Piece, cut_units, read_piece, to_table

STREAM_VERSION = 1  # raise when the same inputs would give other rows
HELD_OUT = (VALIDATION, TEST)


def stream_identities(sources: list[Source]) -> list[dict[str, Any]]:
    """What of each file decides the stream: its size, its first and last 64 KiB, and its rule; never its path."""
    found = of_each(lambda source: ends_sha256(source.path), sources)
    return [
        {**source.identity(digest), "bytes": size}
        for source, (size, digest) in zip(sources, found, strict=True)
    ]


def stream_key(config: DataConfig, identities: list[dict[str, Any]], root: Path) -> str:
    """The content address of a stream; everything in it decides which rows are read when."""
    assert config.stream is not None
    return sha256_of(
        {
            "order": config.order,
            "version": STREAM_VERSION,
            "corpus": identities,
            "tokenizer": config.tokenizer.identity(root),
            "splits": [config.validation_fraction, config.test_fraction, config.split_seed],
            "stream": config.stream.model_dump(mode="json"),
        }
    )


class StreamBuild(Preparation):
    """One preparation of a stream."""

    @property
    def stream(self) -> StreamConfig:
        assert self.config.stream is not None
        return self.config.stream

    @property
    def hold_out(self) -> HoldOut:
        """The shares to cut: none of a split that was published."""
        published = {source.split for source in self.sources}
        shares = {"validation": self.config.validation_fraction, "test": self.config.test_fraction}
        cut = {name: 0.0 if name in published else share for name, share in shares.items()}
        return HoldOut(cut["validation"], cut["test"], self.config.split_seed)

    def run(self) -> None:
        """Cut the units, read and keep the held-out text, make the tokenizer; the manifest last."""
        units = self._units(None, "train")
        if not units:
            raise CorpusError("the corpus has no training text: every file is of a published held-out split")
        if not any(i["bytes"] for i in self.identities):
            raise CorpusError(
                f"{self.sources[0].path} is empty (0 bytes), and there is no other text: fill it"
            )
        np.save(self.temp / "units.npy", to_table(units))
        texts, known = self._held_out(units)
        np.save(self.temp / "held_out.npy", known)
        tokenizer = self.config.tokenizer.build(lambda: self._train_texts(units, known), self.root)
        write_atomic(self.temp / "tokenizer.json", tokenizer.json.encode())
        np.save(self.temp / "token_bytes.npy", tokenizer.token_bytes())
        self._write(units, texts, tokenizer)

    def _units(self, *splits: str | None) -> list[list[Piece]]:
        """The units of the files of some published splits; sources keep their numbers."""
        sizes = [i["bytes"] if s.split in splits else None for s, i in zip(self.sources, self.identities)]
        return cut_units(self.sources, sizes, self.stream.unit_bytes)

    def _held_out(self, units: list[list[Piece]]) -> tuple[dict[int, list[str]], np.ndarray]:
        """The held-out texts of each split, as many as asked for, and the digests of published ones."""
        texts: dict[int, list[str]] = {split: [] for split in HELD_OUT}
        known: list[int] = []
        cut = {VALIDATION: self.hold_out.validation, TEST: self.hold_out.test}
        for split in HELD_OUT:
            if not cut[split]:
                published = (t for unit in self._units(SPLITS[split]) for t in self._read(unit))
                texts[split] = _up_to(published, self.stream.held_out_bytes)
                known += [digest_of(t.strip()) for t in texts[split]]
        digests = np.unique(np.array(known, np.uint64))
        missing = {split: self.stream.held_out_bytes for split in HELD_OUT if cut[split]}
        for done, unit in enumerate(self._sampled(units)):
            if not any(n > 0 for n in missing.values()):
                break
            self.progress("held-out text", done / len(units))
            for text, split in self._documents(unit, digests):
                if missing.get(split, 0) > 0:
                    texts[split].append(text)
                    missing[split] -= len(text.encode())
        for split in HELD_OUT:
            if not texts[split]:
                raise CorpusError(
                    f"no document of the corpus falls into the {SPLITS[split]} split; choose a finer document rule "
                    f"(documents: line), give more text, or raise {SPLITS[split]}_fraction"
                )
        return texts, digests

    def _sampled(self, units: list[list[Piece]]) -> Iterator[list[Piece]]:
        """All units, in an order fixed by the split seed."""
        order = permute(np.arange(len(units)), len(units), self.config.split_seed, -1)
        return (units[i] for i in order.tolist())

    def _read(self, unit: list[Piece]) -> Iterator[str]:
        for piece in unit:
            yield from read_piece(self.sources[piece.source], piece)

    def _documents(self, unit: list[Piece], known: np.ndarray) -> Iterator[tuple[str, int]]:
        """A unit's documents, each with its split."""
        for batch, _ in batches(self._read(unit), []):
            digests = np.array([digest_of(text.strip()) for text in batch], np.uint64)
            yield from zip(batch, self.hold_out.splits(digests, known).tolist(), strict=True)

    def _train_texts(self, units: list[list[Piece]], known: np.ndarray) -> Iterator[str]:
        """Training documents of units here and there, `max_train_bytes` of them."""
        limit = getattr(self.config.tokenizer, "max_train_bytes", None)
        for done, unit in enumerate(self._sampled(units)):
            self.progress("tokenizer", done / len(units))
            for text, split in self._documents(unit, known):
                if split == TRAIN:
                    yield text
                    if limit is not None and (limit := limit - len(text.encode())) <= 0:
                        return

    def _write(self, units: list[list[Piece]], texts: dict[int, list[str]], tokenizer: Tokenizer) -> None:
        dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        sizes = tokenizer.token_bytes().astype(np.int64)
        n_bytes = sum(i["bytes"] for s, i in zip(self.sources, self.identities) if s.split in (None, "train"))
        entries: list[dict[str, Any]] = [{"n_documents": None, "n_bytes": n_bytes, "n_tokens": 0}]
        (self.temp / "train.bin").touch()
        exact = True
        for split in HELD_OUT:
            entry, stands_for = {"n_documents": len(texts[split]), "n_bytes": 0, "n_tokens": 0}, 0
            with (self.temp / f"{SPLITS[split]}.bin").open("wb") as file:
                for batch, _ in batches(texts[split], []):
                    entry["n_bytes"] += sum(len(text.encode()) for text in batch)
                    for ids in tokenizer.encode_documents(batch):
                        entry["n_tokens"] += len(ids)
                        stands_for += int(sizes[ids].sum())
                        file.write(ids.astype(dtype).tobytes())
            entries.append(entry)
            exact = exact and stands_for == entry["n_bytes"]
        hold_out = self.hold_out
        stream = {"n_units": len(units), "hold_out": [hold_out.validation, hold_out.test, hold_out.seed]}
        about = {
            "dtype": dtype,
            "token_bytes_exact": exact,
            "splits": dict(zip(SPLITS, entries, strict=True)),
            "n_dropped_documents": 0,
            "sources": self.identities,
            "stream": {**stream, **self.stream.model_dump(mode="json")},
        }
        identity = self.config.tokenizer.identity(self.root)
        write_manifest(self.temp, self.key, tokenizer, identity, about)


def _up_to(texts: Iterator[str], n_bytes: int) -> list[str]:
    """The first texts, of `n_bytes` together."""
    found = []
    for text in texts:
        if n_bytes <= 0:
            break
        found.append(text)
        n_bytes -= len(text.encode())
    return found
