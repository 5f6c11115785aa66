"""The documents of a corpus, in blocks on disk: no process holds them all.

<folder>/index.json             the blocks, written last
<folder>/documents/<n>.npy      int64 [documents, 4]: start, end, bytes of the text, digest
<folder>/splits-{digest,home,held_out}.npy
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from fabric.data.corpus import SPLITS, CorpusError, Source
from fabric.data.disk import canonical_json, write_atomic
from fabric.data.documents import digest_of, scan
from fabric.data.splits import NOT_GIVEN, Groups, SplitTable

PROGRESS_DOCUMENTS = 4096
TABLE = ("digest", "home", "held_out")


@dataclass(frozen=True)
class Block:
    """Some consecutive documents of one file."""

    number: int
    source: Source
    n_documents: int

    @property
    def given(self) -> int:
        """The published split of its file."""
        return NOT_GIVEN if self.source.split is None else SPLITS.index(self.source.split)


@dataclass(frozen=True)
class Documents:
    """The documents of a block: places, bytes of the text, and the split of each (see `fabric.data.splits`)."""

    starts: np.ndarray
    ends: np.ndarray
    n_bytes: np.ndarray
    splits: np.ndarray


@dataclass(frozen=True)
class Index:
    """An index in a folder; `blocks` are in the order of the corpus."""

    folder: Path
    blocks: list[Block]

    @classmethod
    def found(cls, folder: Path, sources: list[Source]) -> Index | None:
        """The index that is whole in a folder, of the same corpus."""
        file = folder / "index.json"
        if not file.is_file():
            return None
        rows = json.loads(file.read_text())["blocks"]
        return cls(folder, [Block(i, sources[s], n) for i, (s, n) in enumerate(rows)])

    @classmethod
    def write(
        cls,
        folder: Path,
        sources: list[Source],
        block_bytes: float,
        shares: tuple[float, float, int],
        progress: Callable[[float], None] = lambda _: None,
    ) -> Index:
        """Find every document of every source, and its split; documents of white space only are left out.

        A block ends with the document that makes it `block_bytes` large, and with its file. `shares`: validation and
        test fractions, and the seed. Raises CorpusError for text that cannot be read, or too little of it.
        """
        (folder / "documents").mkdir(parents=True, exist_ok=True)
        groups = Groups()
        rows: list[list[int]] = []
        for number, source in enumerate(sources):
            before = len(rows)

            def told(part: float, number: int = number) -> None:
                progress((number + part) / len(sources))

            for table in _blocks_of(source, block_bytes, told):
                block = Block(len(rows), source, len(table))
                groups.add(table[:, 3].view(np.uint64), table[:, 2], block.given)
                np.save(folder / "documents" / f"{block.number}.npy", table)
                rows.append([number, len(table)])
            if len(rows) == before:
                raise CorpusError(
                    f"{source.path} is empty: it holds no text; remove it from the corpus or fill it"
                )
            progress((number + 1) / len(sources))
        found = groups.assign(*shares)
        for name in TABLE:
            np.save(folder / f"splits-{name}.npy", getattr(found, name))
        write_atomic(folder / "index.json", canonical_json({"blocks": rows}).encode())
        return cls(folder, [Block(i, sources[s], n) for i, (s, n) in enumerate(rows)])

    def documents(self) -> Iterator[tuple[Block, Documents]]:
        """Every block with its documents, one after the other."""
        return ((block, documents_of(self.folder, block)) for block in self.blocks)


def documents_of(folder: Path, block: Block) -> Documents:
    """The documents of one block of an index."""
    starts, ends, n_bytes, digests = np.load(
        folder / "documents" / f"{block.number}.npy", allow_pickle=False
    ).T
    splits = _table(str(folder)).splits(np.ascontiguousarray(digests).view(np.uint64), block.given)
    return Documents(starts, ends, n_bytes, splits)


@lru_cache(maxsize=2)
def _table(folder: str) -> SplitTable:
    return SplitTable(
        *(np.load(Path(folder, f"splits-{n}.npy"), mmap_mode="r", allow_pickle=False) for n in TABLE)
    )


def _blocks_of(source: Source, block_bytes: float, progress: Callable[[float], None]) -> Iterator[np.ndarray]:
    """The documents of a file, a block at a time."""
    size, held, found = Path(source.path).stat().st_size, 0, _rows()
    for number, (start, end, text) in enumerate(scan(source)):
        stripped = text.strip()
        if not stripped:
            continue
        n_bytes = len(text.encode())
        held += n_bytes
        for column, value in zip(found, (start, end, n_bytes, digest_of(stripped)), strict=True):
            column.append(value)
        if held >= block_bytes:
            yield _as_table(found)
            held, found = 0, _rows()
        if number % PROGRESS_DOCUMENTS == 0 and source.format != "parquet":  # there, ends are rows
            progress(end / size)
    if found[0]:
        yield _as_table(found)


def _rows() -> tuple[array[int], ...]:
    return array("q"), array("q"), array("q"), array("Q")


def _as_table(columns: tuple[array[int], ...]) -> np.ndarray:
    starts, ends, n_bytes, digests = columns
    places = [np.array(c, np.int64) for c in (starts, ends, n_bytes)]
    return np.stack([*places, np.array(digests, np.uint64).view(np.int64)], axis=1)
