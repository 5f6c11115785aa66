"""Tokenising a corpus in blocks, so that any number of workers in any order writes the same bytes.

Blocks are runs of whole documents of one file. Each is tokenised on its own, document by document, into part
files (`tokenise`); from the blocks' token counts prefix sums give every block its place in each split's
stream, and each writes its own tokens there (`place`). Nothing in the result depends on where the blocks were
cut. A block that is done says so in a file, so that a build that was killed goes on with the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fabric.data.building import WORK
from fabric.data.corpus import SPLITS
from fabric.data.disk import canonical_json, write_atomic
from fabric.data.documents import read_documents
from fabric.data.index import Block, Documents, documents_of
from fabric.data.splits import DROPPED
from fabric.data.tokenizer import Tokenizer, tokenizer_from_json

BLOCK_BYTES = 8 << 20
BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 20, 512  # text held in memory at a time


@dataclass(frozen=True)
class BlockCount:
    """What one block gave, per split: documents, bytes of text, tokens, and the bytes these tokens stand for."""

    number: int
    n_documents: tuple[int, ...]
    n_bytes: tuple[int, ...]
    n_tokens: tuple[int, ...]
    token_bytes: tuple[int, ...]
    n_dropped: int

    @classmethod
    def from_json(cls, text: str) -> BlockCount:
        saved: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()
        }
        return cls(**saved)

    def to_json(self) -> str:
        return canonical_json(asdict(self))


@dataclass(frozen=True)
class BlockWork:
    """The two tasks on a block. Small and picklable: workers find everything else in `folder`, which every
    worker must see (on several machines: shared storage).
    """

    folder: str
    dtype: str
    eos_token: str

    def done(self, number: int) -> BlockCount | None:
        """What a block gave that is tokenised already."""
        try:
            return BlockCount.from_json(self._count(number).read_text())
        except FileNotFoundError:
            return None

    def tokenise(self, block: Block) -> BlockCount:
        """Tokenise a block into part files, one a split; memory does not grow with the block.

        Raises ValueError for unreadable text, and for an id outside the vocabulary.
        """
        if (known := self.done(block.number)) is not None:
            return known
        tokenizer, sizes = tokenizer_in(self.folder, self.eos_token)
        documents = documents_of(Path(self.folder, WORK), block)
        kept = documents.splits != DROPPED
        n_tokens, token_bytes = [0] * len(SPLITS), [0] * len(SPLITS)
        texts = read_documents(block.source, documents.starts[kept], documents.ends[kept])
        with ExitStack() as stack:
            files = [
                stack.enter_context(self._part(block.number, split).open("wb"))
                for split in range(len(SPLITS))
            ]
            for batch, splits in batches(texts, documents.splits[kept].tolist()):
                for ids, split in zip(tokenizer.encode_documents(batch), splits):
                    if (largest := int(ids.max())) >= len(sizes):
                        raise ValueError(
                            f"vocabulary overflow: the tokenizer gave id {largest} for {block.source.path}, "
                            f"but its vocabulary has {len(sizes)} ids; its tokenizer.json is inconsistent"
                        )
                    n_tokens[split] += len(ids)
                    token_bytes[split] += int(sizes[ids].sum())
                    files[split].write(ids.astype(self.dtype).tobytes())
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        n_documents, n_bytes = counted(documents)
        dropped = int((~kept).sum())
        count = BlockCount(block.number, n_documents, n_bytes, tuple(n_tokens), tuple(token_bytes), dropped)
        write_atomic(self._count(block.number), count.to_json().encode())
        return count

    def place(self, number: int, offsets: tuple[int, ...]) -> None:
        """Copy a block's parts to their token offsets in the splits' files and delete the parts.

        A part that is gone was placed before. Plain writes, not a memory map: on a full disk a write raises, a map
        kills the process.
        """
        size = np.dtype(self.dtype).itemsize
        for split, offset in enumerate(offsets):
            part = self._part(number, split)
            if not part.exists():
                continue
            with part.open("rb") as source, self.stream(split).open("r+b") as target:
                target.seek(offset * size)
                while piece := source.read(1 << 22):
                    target.write(piece)
            part.unlink()

    def stream(self, split: int) -> Path:
        """The token file of a split."""
        return Path(self.folder, f"{SPLITS[split]}.bin")

    def _part(self, number: int, split: int) -> Path:
        return Path(self.folder, WORK, "parts", f"{number}-{split}.bin")

    def _count(self, number: int) -> Path:
        return Path(self.folder, WORK, "parts", f"{number}.json")


def counted(documents: Documents) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Documents, and bytes of text, per split."""
    mine = [documents.splits == split for split in range(len(SPLITS))]
    return tuple(int(m.sum()) for m in mine), tuple(int(documents.n_bytes[m].sum()) for m in mine)


def offsets_of(counts: list[BlockCount]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Each block's token offset in each split's stream, in block order, and the streams' lengths."""
    per_block = np.array([c.n_tokens for c in counts], np.int64).reshape(len(counts), len(SPLITS))
    ends = per_block.cumsum(axis=0)
    return [tuple(row) for row in (ends - per_block).tolist()], per_block.sum(axis=0).tolist()


def create_stream(path: Path, n_bytes: int) -> None:
    """A file of the final size, for blocks to write their parts into; what is in it already stays."""
    with path.open("ab") as file:
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
