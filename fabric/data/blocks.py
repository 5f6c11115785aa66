"""Tokenising a corpus in blocks, so that any number of workers in any order writes the same bytes.

Blocks are runs of whole documents of one file. Each is tokenised on its own, document by document, into part
files (`tokenise`); from the blocks' token counts prefix sums give every block its place in each split's
stream, and each writes its own tokens there (`place`). Nothing in the result depends on where the blocks were
cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from fabric.data.corpus import SPLITS, Source
from fabric.data.documents import DocumentIndex, read_documents
from fabric.data.tokenizer import Tokenizer, tokenizer_from_json

BLOCK_BYTES = 8 << 20
BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 20, 512  # text held in memory at a time


@dataclass(frozen=True)
class Block:
    """Some consecutive documents of one file, and the split of each."""

    number: int
    source: Source
    starts: np.ndarray  # int64 [n]
    ends: np.ndarray  # int64 [n]
    splits: np.ndarray  # uint8 [n]


@dataclass(frozen=True)
class BlockCount:
    """What one block gave: tokens per split, and the bytes these tokens stand for."""

    number: int
    n_tokens: tuple[int, ...]
    token_bytes: tuple[int, ...]


@dataclass(frozen=True)
class BlockWork:
    """The two tasks on a block. Small and picklable: workers find everything else in `folder`, which every
    worker must see (on several machines: shared storage).
    """

    folder: str
    dtype: str
    eos_token: str

    def tokenise(self, block: Block) -> BlockCount:
        """Tokenise a block into part files, one a split; memory does not grow with the block.

        Raises ValueError for unreadable text, and for an id outside the vocabulary.
        """
        tokenizer, sizes = tokenizer_in(self.folder, self.eos_token)
        n_tokens, n_bytes = [0] * len(SPLITS), [0] * len(SPLITS)
        files = [self._part(block.number, split).open("wb") for split in range(len(SPLITS))]
        try:
            texts = read_documents(block.source, block.starts, block.ends)
            for batch, splits in batches(texts, block.splits.tolist()):
                for ids, split in zip(tokenizer.encode_documents(batch), splits):
                    if (largest := int(ids.max())) >= len(sizes):
                        raise ValueError(
                            f"vocabulary overflow: the tokenizer gave id {largest} for {block.source.path}, "
                            f"but its vocabulary has {len(sizes)} ids; its tokenizer.json is inconsistent"
                        )
                    n_tokens[split] += len(ids)
                    n_bytes[split] += int(sizes[ids].sum())
                    files[split].write(ids.astype(self.dtype).tobytes())
        finally:
            for file in files:
                file.close()
        return BlockCount(block.number, tuple(n_tokens), tuple(n_bytes))

    def place(self, number: int, offsets: tuple[int, ...]) -> None:
        """Copy a block's parts to their token offsets in the splits' files and delete the parts.

        Plain writes, not a memory map: on a full disk a write raises, a map kills the process.
        """
        size = np.dtype(self.dtype).itemsize
        for split, offset in enumerate(offsets):
            part = self._part(number, split)
            with part.open("rb") as source, self.stream(split).open("r+b") as target:
                target.seek(offset * size)
                while piece := source.read(1 << 22):
                    target.write(piece)
            part.unlink()

    def stream(self, split: int) -> Path:
        """The token file of a split."""
        return Path(self.folder, f"{SPLITS[split]}.bin")

    def _part(self, number: int, split: int) -> Path:
        return Path(self.folder, "parts", f"{number}-{split}.bin")


def cut_blocks(
    index: DocumentIndex, splits: np.ndarray, sources: list[Source], n_blocks: int | None
) -> list[Block]:
    """Cut documents into about `n_blocks` equal blocks, or blocks of 8 MiB; never across two files."""
    total = int(index.n_bytes.sum())
    target = total / n_blocks if n_blocks else BLOCK_BYTES
    middle = np.cumsum(index.n_bytes) - index.n_bytes / 2
    part = (middle // max(target, 1)).astype(np.int64)
    edge = np.flatnonzero((np.diff(part) != 0) | (np.diff(index.source) != 0)) + 1
    borders = [0, *edge.tolist(), len(index)]
    return [
        Block(number, sources[int(index.source[a])], index.start[a:b], index.end[a:b], splits[a:b])
        for number, (a, b) in enumerate(pairwise(borders))
    ]


def offsets_of(counts: list[BlockCount]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Each block's token offset in each split's stream, in block order, and the streams' lengths."""
    per_block = np.array([c.n_tokens for c in counts], np.int64).reshape(len(counts), len(SPLITS))
    ends = per_block.cumsum(axis=0)
    return [tuple(row) for row in (ends - per_block).tolist()], per_block.sum(axis=0).tolist()


def create_stream(path: Path, n_bytes: int) -> None:
    """An empty file of the final size, for blocks to write their parts into."""
    with path.open("wb") as file:
        os.truncate(file.fileno(), n_bytes)


def batches(texts: Iterable[str], splits: list[int]) -> Iterator[tuple[list[str], list[int]]]:
    """Texts with their splits, some at a time: as many as are tokenised at once."""
    batch: list[str] = []
    first = characters = 0
    for number, text in enumerate(texts, start=1):
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch, splits[first:number]
            batch, first, characters = [], number, 0
    if batch:
        yield batch, splits[first:]


@lru_cache(maxsize=2)
def tokenizer_in(folder: str, eos_token: str) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer in a cache's folder, and the bytes each of its ids stands for."""
    file = Path(folder, "tokenizer.json")
    if not file.is_file():
        raise ValueError(
            f"this worker does not see {folder}: with Ray on several machines the cache folder must be on "
            "storage that all of them share (or use the inline backend)"
        )
    tokenizer = tokenizer_from_json(file.read_text(encoding="utf-8"), eos_token, str(file))
    return tokenizer, tokenizer.token_bytes().astype(np.int64)
