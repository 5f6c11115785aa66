"""A YAML document that remembers which line every value came from, through merges and overrides."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Path_ = tuple[str | int, ...]
Pair = tuple[yaml.Node, yaml.Node]  # a key and its value
MERGE = "tag:yaml.org,2002:merge"
MAX_BYTES, MAX_NODES, MAX_DEPTH = 1_000_000, 50_000, 40


class JobError(ValueError):
    """What is wrong with a job: one line a mistake, each with its place, what is allowed and the fix."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


@dataclass(frozen=True)
class Mark:
    """Where a value was written: a file and line, or the name of another source (a preset, `--set`)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass
class Document:
    """Plain data with a mark per path."""

    data: Any
    marks: dict[Path_, Mark] = field(default_factory=dict)

    def copy(self) -> Document:
        return Document(copy.deepcopy(self.data), dict(self.marks))

    def mark(self, path: Path_) -> Mark | None:
        """The mark of a path, or of the nearest thing around it."""
        for n in range(len(path), -1, -1):
            if path[:n] in self.marks:
                return self.marks[path[:n]]
        return None

    def at(self, path: Path_) -> Any:
        """The value at a path; KeyError when there is none."""
        value = self.data
        for key in path:
            if isinstance(value, list):
                inside = isinstance(key, int) and key < len(value)
            else:
                inside = isinstance(value, Mapping) and key in value
            if not inside:
                raise KeyError(key)
            value = value[key]
        return value

    def sub(self, path: Path_) -> Document:
        """The document below a path, with its marks; an empty mapping when there is none."""
        n = len(path)
        try:
            data = copy.deepcopy(self.at(path))
        except KeyError:
            data = {}
        marks = {p[n:]: m for p, m in self.marks.items() if p[:n] == path}
        outer = self.mark(path)
        if () not in marks and outer:
            marks[()] = outer
        return Document(data, marks)

    def put(self, path: Path_, value: Document) -> None:
        """Set the value at a path, by the rules of `merge`; mappings on the way are made."""
        into_list = [i for i, key in enumerate(path) if isinstance(key, int)]
        if into_list:
            n = into_list[-1] + 1
            self._must_exist(path[:n], value)
            inner = Document(
                self.at(path[:n]), {p[n:]: m for p, m in self.marks.items() if p[:n] == path[:n]}
            )
            inner.put(path[n:], value)
            self.at(path[: n - 1])[path[n - 1]] = inner.data
            self.marks = {p: m for p, m in self.marks.items() if p[:n] != path[:n]}
            self.marks.update({(*path[:n], *p): m for p, m in inner.marks.items()})
            return
        mark = value.mark(())
        for n in range(len(path) - 1, -1, -1):
            marks = {(path[n], *p): m for p, m in value.marks.items()}
            if mark is not None and not self._has_mapping(path[: n + 1]):
                marks.setdefault((path[n],), mark)  # what is made on the way was written there too
            value = Document({path[n]: value.data}, marks)
        self.merge(value)

    def has(self, path: Path_) -> bool:
        """Whether anything was written at a path."""
        try:
            self.at(path)
        except KeyError:
            return False
        return True

    def _has_mapping(self, path: Path_) -> bool:
        try:
            return isinstance(self.at(path), Mapping)
        except KeyError:
            return False

    def _must_exist(self, path: Path_, value: Document) -> None:
        try:
            self.at(path)
        except KeyError:
            where = f"{mark}: " if (mark := value.mark(())) else ""
            text = ".".join(map(str, path))
            raise JobError([f"{where}{text!r} points nowhere: there is no such item in a list"]) from None

    def merge(self, other: Document) -> None:
        """Lay another document over this one.

        Mappings merge key by key; anything else replaces. A mapping that names a `kind` replaces the part that was
        there; a bare `kind: x` put on a part of another kind keeps the fields that kind has too (`families`). A model
        that starts `from` weights replaces one that was described: the weights have an architecture of their own.
        """
        self.data = self._merged(self.data, other.data, (), other.marks)

    def _merged(self, mine: Any, theirs: Any, path: Path_, marks: dict[Path_, Mark]) -> Any:
        whole = isinstance(theirs, Mapping) and "kind" in theirs and len(theirs) > 1
        if path[-1:] == ("model",) and isinstance(mine, dict) and isinstance(theirs, Mapping):
            whole = whole or ("from" in theirs and "from" not in mine)
        if isinstance(mine, dict) and isinstance(theirs, Mapping) and set(theirs) == {"kind"} != set(mine):
            from fabric.job.families import switch_kind

            mine = switch_kind(str(path[-1]) if path else "", mine, theirs["kind"])
        if isinstance(mine, dict) and isinstance(theirs, Mapping) and not whole:
            if path in marks and path not in self.marks:
                self.marks[path] = marks[path]
            for key, value in theirs.items():
                mine[key] = self._merged(mine.get(key), value, (*path, key), marks)
            return mine
        n = len(path)
        for old in [p for p in self.marks if p[:n] == path]:
            del self.marks[old]
        self.marks.update({p: m for p, m in marks.items() if p[:n] == path})
        return copy.deepcopy(theirs)


def from_data(data: Any, mark: Mark) -> Document:
    """A document whose every value has the same mark (a preset, a `--set`, a job given as a mapping).

    Tuples become lists and paths text; JobError for anything YAML has no word for.
    """
    return Document(_plain(data, mark, ()), {(): mark})


def _plain(value: Any, mark: Mark, path: Path_) -> Any:
    if len(path) > MAX_DEPTH:
        raise JobError([f"{mark}: nested more than {MAX_DEPTH} levels deep"])
    if isinstance(value, Mapping):
        return {str(k): _plain(v, mark, (*path, str(k))) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, mark, (*path, i)) for i, v in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise JobError([f"{mark}: {'.'.join(map(str, path))} = {value} is not a finite number"])
    if value is None or isinstance(value, bool | int | float | str):
        return value
    what = f"{'.'.join(map(str, path))} = {value!r} is a {type(value).__name__}"
    raise JobError([f"{mark}: {what}; allowed are numbers, text, true, false, null, lists and mappings"])


def read_yaml(path: Path) -> Document:
    """Read a job file: safe YAML, bounded in size, depth and expansion, no duplicate keys.

    Raises JobError with file and line for anything else.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise JobError([f"{path}: cannot be read: {error.strerror or error}"]) from None
    if len(raw) > MAX_BYTES:
        raise JobError([f"{path}: {len(raw)} bytes; a job file has at most {MAX_BYTES}"])
    try:
        text = raw.decode("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise JobError([f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise JobError([f"{where}: not YAML: {error.problem or error.context}"]) from None
    except yaml.YAMLError as error:
        raise JobError([f"{path}: not YAML: {str(error).splitlines()[0]}"]) from None
    except RecursionError:
        raise JobError([f"{path}: nested more than {MAX_DEPTH} levels deep"]) from None
    if not isinstance(node, yaml.MappingNode):
        raise JobError([f"{path}:1: a job file is a mapping with the keys schema, name, base, search, …"])
    return _Reader(lambda line: Mark(str(path), line)).document(node)


def read_value(text: str, mark: Mark) -> Document:
    """A value given outside a file (`--set`), read as in one. Raises JobError that begins with the mark."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        raise JobError([f"{mark}: {text!r} is not a YAML value"]) from None
    return Document(None, {(): mark}) if node is None else _Reader(lambda _: mark).document(node)


class _Reader:
    """Builds data and marks from YAML nodes, counting what anchors expand to; `mark` is the one of a line."""

    def __init__(self, mark: Callable[[int], Mark]) -> None:
        self.mark = mark
        self.loader = yaml.SafeLoader("")
        self.marks: dict[Path_, Mark] = {}
        self.n_nodes = 0
        self._flats: dict[int, dict[str, Pair]] = {}

    def document(self, node: yaml.Node) -> Document:
        return Document(self._value(node, ()), self.marks)

    def _fail(self, node: yaml.Node, message: str) -> JobError:
        return JobError([f"{self._mark(node)}: {message}"])

    def _mark(self, node: yaml.Node) -> Mark:
        return self.mark(node.start_mark.line + 1)

    def _value(self, node: yaml.Node, path: Path_) -> Any:
        self.n_nodes += 1
        if self.n_nodes > MAX_NODES:
            raise self._fail(node, f"more than {MAX_NODES} values; are anchors expanding into each other?")
        if len(path) > MAX_DEPTH:
            raise self._fail(node, f"nested more than {MAX_DEPTH} levels deep")
        self.marks.setdefault(path, self._mark(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, i)) for i, item in enumerate(node.value)]
        try:
            value = self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError) as error:
            problem = getattr(error, "problem", None) or error
            raise self._fail(node, f"{node.value!r} cannot be read: {problem}") from None
        if not isinstance(value, bool | int | float | str | None):
            kind = type(value).__name__
            raise self._fail(node, f"{node.value!r} is read as a {kind}; write it in quotes")
        if isinstance(value, int | float) and ":" in node.value:  # YAML 1.1 counts in sixties
            message = (
                f"{node.value!r} is read as the number {value:g}; write a plain number, or text in quotes"
            )
            raise self._fail(node, message)
        if isinstance(value, float) and not math.isfinite(value):
            raise self._fail(node, f"{node.value!r} is not a finite number")
        return value

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, (key_node, value_node) in self._flat(node).items():
            self.marks[(*path, key)] = self._mark(key_node)
            result[key] = self._value(value_node, (*path, key))
        return result

    def _flat(self, node: yaml.MappingNode) -> dict[str, Pair]:
        """What a mapping holds with all that `<<` brings, each key once and each node flattened once: lists of aliases
        to lists of aliases would grow without end. Of a list of mappings the first wins, keys written here over all."""
        known = self._flats.get(id(node))
        if known is None:
            self._flats[id(node)] = {}  # while it is looked at: one that merges itself brings nothing
            known = {}
            for key_node, value_node in node.value:
                if key_node.tag == MERGE:
                    listed = isinstance(value_node, yaml.SequenceNode)
                    for brought in reversed(value_node.value) if listed else [value_node]:
                        if not isinstance(brought, yaml.MappingNode):
                            raise self._fail(
                                brought, "`<<` cannot be merged: it takes a mapping, or a list of mappings"
                            )
                        known |= self._flat(brought)
            known |= self._own(node)
            self._flats[id(node)] = known
        return known

    def _own(self, node: yaml.MappingNode) -> dict[str, Pair]:
        """The keys written in a mapping itself; JobError when one is there twice."""
        found: dict[str, Pair] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                continue
            key = self._key(key_node)
            if key in found:
                raise self._fail(key_node, f"{key!r} is written twice in the same mapping")
            found[key] = (key_node, value_node)
        return found

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._fail(node, "a key must be plain text")
        return str(node.value)
