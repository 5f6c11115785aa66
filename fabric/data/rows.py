"""Rows of a task's data: local files in the formats their publishers use, or a data set of the hub.

A table says which files of a folder hold a split, by the names the known releases give them, and what their columns are
called; rows come out with the hub's field names, whatever the file's form.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric.paths import real_path
from models.parts import nearest

csv.field_size_limit(2**31 - 1)  # documents may be longer than csv's own 131,072 characters


class TaskDataError(ValueError):
    """A task's data is missing, or not in the form it should have."""


@dataclass(frozen=True)
class Table:
    """Where one split of a data set is.

    `files`: paths below the data folder, tried in order; a folder stands for all its .jsonl files. `columns`: names
    of a file without a header (None: the header, or JSON's keys). `rename`: a file's own names for the hub's. `unfold`:
    the rows that a nested one of a file stands for. `hub`: repository, configuration and split.
    """

    files: tuple[str, ...]
    hub: tuple[str, str | None, str] | None = None
    columns: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    unfold: Callable[[Row], Iterable[Row]] | None = None


@dataclass(frozen=True)
class Row:
    """The fields of a row, and where it was written: `file:line`, or the hub's split and index."""

    fields: Mapping[str, Any]
    where: str

    def __getitem__(self, name: str) -> Any:
        """A field. Raises TaskDataError naming the place and what is there where it is missing."""
        try:
            return self.fields[name]
        except KeyError:
            known = ", ".join(map(str, self.fields)) or "none"
            close = nearest(name, list(map(str, self.fields)))
            hint = f"; is {close!r} meant?" if close else ""
            raise TaskDataError(f"{self.where}: no field {name!r} (there are: {known}){hint}") from None

    def text(self, name: str) -> str:
        """A field that must be text. Raises TaskDataError for anything else."""
        value = self[name]
        if not isinstance(value, str):
            raise TaskDataError(f"{self.where}: {name} = {value!r} is no text")
        return value

    def inner(self, name: str) -> Row:
        """A field that must hold fields. Raises TaskDataError for anything else."""
        value = self[name]
        if not isinstance(value, Mapping):
            raise TaskDataError(f"{self.where}: {name} = {value!r} is no object")
        return Row(value, f"{self.where} {name}")

    def each(self, name: str) -> list[Row]:
        """A field that must hold a list of objects. Raises TaskDataError for anything else."""
        values = self[name]
        if not isinstance(values, list) or not all(isinstance(v, Mapping) for v in values):
            raise TaskDataError(f"{self.where}: {name} is no list of objects")
        return [Row(v, f"{self.where} {name}[{i}]") for i, v in enumerate(values)]

    def texts(self, name: str) -> list[str]:
        """A field that must hold a list of texts, not empty. Raises TaskDataError for anything else."""
        values = self[name]
        if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
            raise TaskDataError(f"{self.where}: {name} = {values!r} is no list of texts, or empty")
        return values

    def one_of(self, name: str, allowed: Mapping[Any, int]) -> int:
        """The number of a label. Raises TaskDataError for one outside the set."""
        value = self[name]
        found = None
        if isinstance(value, str | int | float):  # JSON may hold lists and objects, which are no keys
            found = next((allowed[key] for key in _spellings(value) if key in allowed), None)
        if found is None:
            names = ", ".join(map(repr, allowed))
            raise TaskDataError(
                f"{self.where}: {name} = {value!r} is no label of this task; allowed: {names}"
            )
        return found


def _spellings(value: str | int | float) -> Iterator[str | int | float]:
    """A label as it may be written: Parquet's 1.0 is 1, JSON's true is Python's True."""
    yield value
    yield str(value)
    if isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, float) and value.is_integer():
        yield str(int(value))


def file_of(files: Iterable[str], folder: Path | None) -> Path | None:
    """The first of some files (or folders) that a data folder holds; none without a folder."""
    if folder is None:
        return None
    return next((path for name in files if (path := real_path(folder / name)).exists()), None)


def read_table(table: Table, folder: Path | None) -> list[Row]:
    """The rows of a table: from the first of its files that `folder` holds, else from the hub.

    Raises TaskDataError naming every place that was tried, or the file and line of a row that is none.
    """
    tried = [] if folder is None else [real_path(folder / name) for name in table.files]
    for path in tried:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path] if path.is_file() else []
        rows = [row for file in files for row in _as_the_hub(_rows_of(file, table), table)]
        if files and not rows:
            raise TaskDataError(f"{path} holds no rows")
        if rows:
            return rows
    if table.hub is None or folder is not None:
        places = ", ".join(map(str, tried)) or "no folder was named"
        raise TaskDataError(
            f"its data is not here (tried: {places}); name the folder that holds it with --data"
        )
    return list(_from_hub(*table.hub))


def _as_the_hub(rows: Iterator[Row], table: Table) -> Iterator[Row]:
    """A file's rows with the hub's names, one each of the hub's."""
    names = table.rename
    for row in rows:
        renamed = Row({names.get(k, k): v for k, v in row.fields.items()}, row.where) if names else row
        yield from [renamed] if table.unfold is None else table.unfold(renamed)


def _rows_of(path: Path, table: Table) -> Iterator[Row]:
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{path} is not UTF-8 at byte {error.start}") from None
    yield from READERS.get(path.suffix.lower(), _tabbed)(path, text, table)


def _json_lines(path: Path, text: str, _: Table) -> Iterator[Row]:
    # Not splitlines: JSON may hold U+2028 and the like unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _object(line, f"{path}:{number}")


def _object(line: str, where: str) -> Row:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise TaskDataError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise TaskDataError(f"{where}: a row is a JSON object, not {type(value).__name__}")
    return Row(value, where)


def _json(path: Path, text: str, _: Table) -> Iterator[Row]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise TaskDataError(f"{path}: not JSON: {error}") from None
    values = values.get("data", values) if isinstance(values, dict) else values
    if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
        raise TaskDataError(f"{path}: not a list of JSON objects")
    for number, value in enumerate(values):
        yield Row(value, f"{path}[{number}]")


def _tabbed(path: Path, text: str, table: Table) -> Iterator[Row]:
    """Tab-separated, without quotes: GLUE's files hold single ones."""
    yield from _lines(
        path, csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE), table
    )


def _commas(path: Path, text: str, table: Table) -> Iterator[Row]:
    """Comma-separated, quoted where a field holds a comma or a line's end (RFC 4180)."""
    yield from _lines(path, csv.reader(io.StringIO(text, newline=""), strict=True), table)


def _lines(path: Path, lines: Any, table: Table) -> Iterator[Row]:
    columns = table.columns
    while True:
        try:
            line = next(lines, None)
        except csv.Error as error:
            raise TaskDataError(f"{path}:{lines.line_num}: {error}") from None
        if line is None:
            return
        where = f"{path}:{lines.line_num}"
        if columns is None:
            columns = tuple(line)
            if twice := next((c for c in columns if columns.count(c) > 1), None):
                raise TaskDataError(f"{where}: two columns are called {twice!r}; rename one of them")
            continue
        if not line:
            continue
        if len(line) != len(columns):
            raise TaskDataError(
                f"{where}: {len(line)} columns where there are {len(columns)} ({', '.join(columns)})"
            )
        yield Row(dict(zip(columns, line, strict=True)), where)


READERS: dict[str, Callable[[Path, str, Table], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _commas,
}


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        values = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise TaskDataError(f"{path} is not a Parquet file ({error})") from None
    for number, value in enumerate(values):
        yield Row(value, f"{path}[{number}]")


def _from_hub(name: str, configuration: str | None, split: str) -> Iterator[Row]:
    """Never tried here: no hub is within reach."""
    import datasets

    try:
        found = datasets.load_dataset(name, configuration, split=split)
    except Exception as error:
        raise TaskDataError(
            f"{name} ({configuration}, {split}) cannot be read from the hub: {error}; name a folder that holds it with "
            "--data"
        ) from None
    for number, value in enumerate(found):
        yield Row(value, f"{name}/{split}[{number}]")
