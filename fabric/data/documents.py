"""From files to documents: their places in a source, and the texts of a run of them.

A document is known by its place in its file: bytes `[start, end)` for text and JSON Lines, rows `[start,
end)` for Parquet. The places are found by one pass over each file (`fabric.data.index`); blocks of documents are then
read independently of each other, so tokenising can be spread in any way without changing what is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fabric.data.corpus import CorpusError, Source, reading
from fabric.data.places import Opened, is_url

SEEN_BYTES = 16 << 20  # of a file's map given back at a time
BOM = b"\xef\xbb\xbf"


def digest_of(stripped: str) -> int:
    """64 bits of the hash of a text without surrounding white space."""
    return int.from_bytes(hashlib.blake2b(stripped.encode(), digest_size=8).digest(), "little")


def scan(source: Source) -> Iterator[tuple[int, int, str]]:
    """Every document of a file with its place; those of white space only are among them.

    Raises CorpusError (a ValueError) for an empty file, bad UTF-8 (file and byte offset) or a missing text field.
    """
    with reading(source.path):
        yield from _SCANNERS[source.format](source)


def read_documents(source: Source, starts: np.ndarray, ends: np.ndarray) -> Iterator[str]:
    """The texts of documents of one source, in the order given (ascending)."""
    if source.format == "parquet":
        yield from _read_parquet_rows(source, starts)
        return
    with reading(source.path), Path(source.path).open("rb") as file:
        for start, end in zip(starts.tolist(), ends.tolist()):
            file.seek(start)
            raw = file.read(end - start)
            yield (
                _json_text(source, raw, start)
                if source.format == "jsonl"
                else _decode(source.path, raw, start)
            )


def _decode(path: str, raw: bytes, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise CorpusError(
            f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {at} ({error.reason}); "
            "convert it first, for example: iconv -f LATIN1 -t UTF-8 old.txt > new.txt"
        ) from None


def _scan_text(source: Source) -> Iterator[tuple[int, int, str]]:
    path = Path(source.path)
    if path.stat().st_size == 0:
        raise CorpusError(f"{path} is empty (0 bytes); remove it from the corpus or fill it")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        seen = 0
        for start, end in _cut(data, source, is_head=True):
            yield start, end, _decode(source.path, data[start:end], start)
            while start - seen >= SEEN_BYTES:  # what is mapped counts as this process's memory
                data.madvise(mmap.MADV_DONTNEED, seen, SEEN_BYTES)
                seen += SEEN_BYTES


def _cut(data: mmap.mmap | bytes, source: Source, is_head: bool) -> Iterator[tuple[int, int]]:
    """Byte ranges of the documents. A range of white space only is joined to the document after it, so
    nothing is lost at a file's head; at its end it is dropped with the separator.
    """
    begin = len(BOM) if is_head and data[: len(BOM)] == BOM else 0
    rule = source.boundary
    if rule.pattern is not None:
        for match in re.finditer(rule.pattern.encode(), data, re.MULTILINE):
            end = match.end() if rule.where == "end" else match.start()
            if end <= begin or (rule.where != "drop" and not data[begin:end].strip()):
                begin = max(begin, match.end()) if rule.where == "drop" else begin
                continue
            yield begin, end
            begin = match.end() if rule.where == "drop" else end
    if begin < len(data):
        yield begin, len(data)


def documents_of_bytes(source: Source, data: bytes, start: int) -> Iterator[str]:
    """The texts of a stretch of whole documents, which begins at byte `start` of its text or JSON Lines file."""
    if source.format == "text":
        for first, last in _cut(data, source, is_head=start == 0):
            yield _decode(source.path, data[first:last], start + first)
        return
    for line in io.BytesIO(data):
        if line.strip():
            yield _json_text(source, line, start)
        start += len(line)


def _scan_jsonl(source: Source) -> Iterator[tuple[int, int, str]]:
    with Path(source.path).open("rb") as file:
        start = 0
        for line in file:
            if line.strip():
                yield start, start + len(line), _json_text(source, line, start)
            start += len(line)
        if start == 0:
            raise CorpusError(f"{source.path} is empty (0 bytes); remove it from the corpus or fill it")


def _json_text(source: Source, line: bytes, start: int) -> str:
    text = _decode(source.path, line, start)
    try:
        row = json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise CorpusError(f"{source.path}: the line at byte {start} is not JSON ({error.msg})") from None
    except RecursionError:
        raise CorpusError(
            f"{source.path}: the line at byte {start} is nested too deeply to be read"
        ) from None
    if not isinstance(row, dict):
        raise CorpusError(f"{source.path}: the line at byte {start} is not a JSON object with a text field")
    return _field(source, row, f"the line at byte {start}")


def _field(source: Source, row: dict[str, Any], where: str) -> str:
    value = row.get(source.text_field)
    if not isinstance(value, str):
        found = ", ".join(f"{k} ({type(v).__name__})" for k, v in row.items()) or "none"
        raise CorpusError(
            f"{source.path}: {where} has no text in field {source.text_field!r}; fields found: {found}; "
            "set text_field to one that holds text"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CorpusError(f"{source.path}: {where} holds a lone surrogate, which UTF-8 cannot hold") from None
    return value


def _open_parquet(source: Source) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(Opened(source.path).file if is_url(source.path) else source.path)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{source.path} is not a Parquet file ({error})") from None
    if source.text_field not in file.schema_arrow.names:
        found = ", ".join(f"{f.name} ({f.type})" for f in file.schema_arrow)
        raise CorpusError(
            f"{source.path} has no field {source.text_field!r}; fields found: {found}; "
            "set text_field to one that holds text"
        )
    column = file.schema_arrow.field(source.text_field).type
    column = column.value_type if pa.types.is_dictionary(column) else column
    if not (
        pa.types.is_string(column) or pa.types.is_large_string(column) or pa.types.is_string_view(column)
    ):
        raise CorpusError(
            f"{source.path}: field {source.text_field!r} holds {column}, not text; set text_field to one that does"
        )
    return file


@contextmanager
def _reading_parquet(source: Source) -> Iterator[None]:
    """pyarrow's errors about damaged pages name the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"{source.path} is a damaged Parquet file ({error}); fetch or write it again"
        ) from None


def _scan_parquet(source: Source) -> Iterator[tuple[int, int, str]]:
    file = _open_parquet(source)
    batches = file.iter_batches(columns=[source.text_field], batch_size=1024)
    for row, value in enumerate(_values(source, batches)):
        yield row, row + 1, _field(source, {source.text_field: value}, f"row {row}")


def _values(source: Source, batches: Iterator[Any]) -> Iterator[Any]:
    """The values of a column, batch by batch."""
    while True:
        with _reading_parquet(source):
            batch = next(batches, None)
            values = [] if batch is None else batch.column(0).to_pylist()
        if batch is None:
            return
        yield from values


def row_group_bytes(source: Source) -> list[int]:
    """Bytes of the text in each row group of a Parquet file, uncompressed."""
    about = _open_parquet(source).metadata
    sizes = []
    for group in (about.row_group(g) for g in range(about.num_row_groups)):
        columns = [group.column(i) for i in range(group.num_columns)]
        sizes += [int(c.total_uncompressed_size) for c in columns if c.path_in_schema == source.text_field]
    return sizes


def documents_of_row_group(source: Source, group: int) -> Iterator[str]:
    """The texts of a row group's rows."""
    file = _open_parquet(source)
    batches = file.iter_batches(columns=[source.text_field], batch_size=1024, row_groups=[group])
    for row, value in enumerate(_values(source, batches)):
        yield _field(source, {source.text_field: value}, f"row {row} of row group {group}")


def _read_parquet_rows(source: Source, starts: np.ndarray) -> Iterator[str]:
    file, first = _open_parquet(source), 0
    for group in range(file.num_row_groups):
        n_rows = file.metadata.row_group(group).num_rows
        wanted = starts[(starts >= first) & (starts < first + n_rows)]
        if len(wanted):
            with _reading_parquet(source):
                column = file.read_row_group(group, columns=[source.text_field]).column(0)
            for row in wanted.tolist():
                yield column[row - first].as_py()
        first += n_rows


_SCANNERS: dict[str, Callable[[Source], Iterator[tuple[int, int, str]]]] = {
    "text": _scan_text,
    "jsonl": _scan_jsonl,
    "parquet": _scan_parquet,
}
