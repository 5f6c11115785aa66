"""Units of a corpus that is streamed: numbered stretches of its files, known without reading the text.

A unit is some pieces of files, `unit_bytes` together or up to three times that. A piece of a text is a range of bytes
whose borders are moved to the next beginning of a document; both neighbours find the same place, so every document is
in one piece. A piece of a Parquet file is a row group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fabric.data.corpus import CorpusError, Source
from fabric.data.documents import documents_of_bytes, documents_of_row_group, row_group_bytes
from fabric.data.places import Opened, of_each

BORDER_BYTES = 1 << 16  # read to find a document's beginning, doubled until it is found
LONGEST_DOCUMENT = 64 << 20


@dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of a text or JSON Lines file before their borders are moved, or row groups of Parquet."""

    source: int
    start: int
    end: int


def cut_units(sources: list[Source], sizes: Sequence[int | None], unit_bytes: int) -> list[list[Piece]]:
    """All pieces of the sources, in order, put together to units of at least `unit_bytes` (the last may be less).

    A source of size None is left out.
    """
    units: list[list[Piece]] = []
    held = 0
    files = [(i, s, n) for i, (s, n) in enumerate(zip(sources, sizes, strict=True)) if n is not None]
    for pieces in of_each(lambda f: list(_pieces(*f, unit_bytes)), files):
        for piece, n_bytes in pieces:
            if held == 0:
                units.append([])
            units[-1].append(piece)
            held = (held + n_bytes) if held + n_bytes < unit_bytes else 0
    return units


def _pieces(number: int, source: Source, size: int, unit_bytes: int) -> Iterator[tuple[Piece, int]]:
    if source.format == "parquet":
        for group, n_bytes in enumerate(row_group_bytes(source)):
            yield Piece(number, group, group + 1), n_bytes
        return
    n = 1 if _is_whole(source) else max(1, size // unit_bytes)
    for i in range(n):
        start, end = size * i // n, size * (i + 1) // n
        yield Piece(number, start, end), end - start


def to_table(units: list[list[Piece]]) -> np.ndarray:
    """Units as int64 [n_pieces, 4]: unit, source, start, end."""
    rows = [(unit, p.source, p.start, p.end) for unit, pieces in enumerate(units) for p in pieces]
    return np.array(rows, np.int64).reshape(-1, 4)


def pieces_of(table: np.ndarray, unit: int) -> list[Piece]:
    """The pieces of one unit of a table."""
    first, last = np.searchsorted(table[:, 0], [unit, unit + 1])
    return [Piece(*row[1:]) for row in table[first:last].tolist()]


def read_piece(source: Source, piece: Piece) -> Iterator[str]:
    """The texts of a piece's documents, in order; those of white space only are left out.

    Raises CorpusError for text that cannot be read, and for a document longer than 64 MiB.
    """
    if source.format == "parquet":
        texts = documents_of_row_group(source, piece.start)
    else:
        if _is_whole(source) and piece.end > LONGEST_DOCUMENT:
            raise _too_long(source, 0)
        with Opened(source.path) as opened:
            start, end = _border(opened, source, piece.start), _border(opened, source, piece.end)
            data = opened.read(start, end)
        texts = documents_of_bytes(source, data, start)
    for text in texts:
        if text.strip():
            yield text


def _is_whole(source: Source) -> bool:
    """Whether a file is one document."""
    return source.format == "text" and source.boundary.pattern is None


def _border(opened: Opened, source: Source, offset: int) -> int:
    """Where the first document begins at or after `offset`; the same for the piece before and the one after."""
    if offset == 0 or offset >= opened.size:
        return offset
    pattern, where = (b"\n", "end") if source.format == "jsonl" else _compiled(source)
    first = offset - 1  # a pattern may begin with ^, and a line's end just before begins a line here
    n_bytes = BORDER_BYTES
    while n_bytes <= LONGEST_DOCUMENT:
        data = opened.read(first, first + n_bytes)
        found = re.compile(pattern, re.MULTILINE).search(data, 0 if source.format == "jsonl" else 1)
        at_end = first + len(data) >= opened.size
        if found and (found.end() < len(data) or at_end):
            return first + (found.start() if where == "start" else found.end())
        if at_end:
            return opened.size
        n_bytes *= 2
    raise _too_long(source, offset)


def _too_long(source: Source, offset: int) -> CorpusError:
    return CorpusError(
        f"{source.path}: no document begins within {LONGEST_DOCUMENT >> 20} MiB after byte {offset}; streams need "
        "shorter documents: choose a finer rule (documents: line, or a separator)"
    )


def _compiled(source: Source) -> tuple[bytes, str]:
    assert source.boundary.pattern is not None
    return source.boundary.pattern.encode(), source.boundary.where
