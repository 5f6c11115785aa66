"""From pydantic's errors to one line a mistake: place, value, what is allowed, the nearest valid name."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fabric.job.document import Document, JobError, Path_
from models.parts import meant, nearest

MISTAKES_SHOWN = 12
# What pydantic's errors about a field's plain type want.
_PLAIN = {
    "bool_parsing": "true, false",
    "bool_type": "true, false",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
}


def validate(config_class: type[Any], document: Document, prefix: Path_ = ()) -> Any:
    """Validate a document as a config; `prefix` is where the document sits in the job.

    Raises JobError with one line a mistake.
    """
    try:
        config = config_class.model_validate(document.data)
    except ValidationError as error:
        found = _located(config_class, document, error)
        misspelt = {
            (*p[:-1], nearest(str(p[-1]), _names(m))) for i, p, m in found if i["type"] == "extra_forbidden"
        }
        # A misspelt key is one mistake, not an unknown key and a missing one.
        found = [(i, p, m) for i, p, m in found if not (i["type"] == "missing" and p in misspelt)]
        found = _choices_joined(found)
        lines = list(dict.fromkeys(_line(item, path, model, document, prefix) for item, path, model in found))
        if len(lines) > MISTAKES_SHOWN:
            n_more = len(lines) - MISTAKES_SHOWN
            lines = [*lines[:MISTAKES_SHOWN], f"{_place(document, ())}and {n_more} more"]
        raise JobError(lines) from None
    for path in _truth_as_number(config, document.data, ()):
        raise explain(document, path, f"{document.at(path)} is no number; write one", prefix)
    return config


def unknown_keys(config_class: type[Any], document: Document, prefix: Path_ = ()) -> list[str]:
    """One line for every key of a document that its config does not know; no other mistake is looked at."""
    try:
        config_class.model_validate(document.data)
    except ValidationError as error:
        found = _located(config_class, document, error)
        return [_line(i, p, m, document, prefix) for i, p, m in found if i["type"] == "extra_forbidden"]
    return []


def _located(config_class: type[Any], document: Document, error: ValidationError) -> list[tuple[Any, ...]]:
    return [(item, *_walk(config_class, document.data, item["loc"])) for item in error.errors()]


def _choices_joined(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """A value that is neither a number or truth value nor one of some words (`auto`) is one mistake, not two."""
    wanted: dict[Path_, list[str]] = {}
    for item, path, _ in found:
        if item["type"] in _PLAIN:
            wanted.setdefault(path, []).append(_PLAIN[item["type"]])
    words = {path for item, path, _ in found if item["type"] == "literal_error"}
    joined = []
    for item, path, model in found:
        if path in words and path in wanted:
            if item["type"] != "literal_error":
                continue
            expected = [*wanted[path], item["ctx"]["expected"]]
            item = {**item, "ctx": {"expected": ", ".join(dict.fromkeys(expected))}}
        joined.append((item, path, model))
    return joined


def _truth_as_number(config: Any, data: Any, path: Path_) -> Iterator[Path_]:
    """Where true or false was taken for 1 or 0 (pydantic does so; in a job it is a slip of the pen)."""
    if isinstance(data, bool):
        if isinstance(config, int | float) and not isinstance(config, bool):
            yield path
    elif isinstance(config, BaseModel) and isinstance(data, Mapping):
        for name, field in type(config).model_fields.items():
            key = field.alias or name
            if key in data:
                yield from _truth_as_number(getattr(config, name), data[key], (*path, key))
    elif isinstance(config, list | tuple) and isinstance(data, list):
        for i, (inner, given) in enumerate(zip(config, data)):
            yield from _truth_as_number(inner, given, (*path, i))


def explain(document: Document, path: Path_, message: str, prefix: Path_ = ()) -> JobError:
    """An error about the value at a path of a document."""
    return JobError([f"{_place(document, path)}{dotted((*prefix, *path))}: {message}"])


def dotted(path: Path_) -> str:
    """('search', 'axes', 0, 'path') -> 'search.axes[0].path'."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else (f".{key}" if text else key)
    return text or "the job"


def _place(document: Document, path: Path_) -> str:
    mark = document.mark(path)
    return f"{mark}: " if mark else ""


def _walk(config_class: Any, data: Any, loc: tuple[Any, ...]) -> tuple[Path_, type[BaseModel] | None]:
    """The real path behind pydantic's location (union tags taken out), and the model that owns its last key."""
    path: list[str | int] = []
    annotation: Any = config_class
    owner: type[BaseModel] | None = None
    for key in loc:
        model = _model_of(annotation, data)
        fields = {f.alias or n: f for n, f in model.model_fields.items()} if model else {}
        if key in fields:
            annotation = fields[key].annotation
            data = data.get(key) if isinstance(data, Mapping) else None
        elif isinstance(data, Mapping) and key in data:
            annotation, data = (None if model else annotation), data[key]
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:  # the tag of a union's branch, which the data itself may leave out
            annotation = _branch(annotation, key) or annotation
            continue
        owner = model
        path.append(key)
    return tuple(path), owner


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The model classes of a field's type: unions and containers are looked into."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return _models_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        return [model for inner in get_args(annotation) for model in _models_in(inner)]
    return []


def _branch(annotation: Any, tag: Any) -> type[BaseModel] | None:
    """The model of a union whose `kind` is the tag."""
    for model in _models_in(annotation):
        field = model.model_fields.get("kind")
        if field is not None and tag in get_args(field.annotation):
            return model
    return None


def _model_of(annotation: Any, data: Any) -> type[BaseModel] | None:
    """The model class that data is meant for; those of a union are told apart by `kind`."""
    found = _models_in(annotation)
    if len(found) > 1 and isinstance(data, Mapping):
        if named := _branch(annotation, data.get("kind")):
            return named
        keys = set(data)
        found.sort(key=lambda m: -len(keys & set(m.model_fields)))
    return found[0] if found else None


def _line(item: Any, path: Path_, model: type[BaseModel] | None, document: Document, prefix: Path_) -> str:
    kind, value, message = item["type"], item.get("input"), item["msg"]
    at = (*path, "kind") if kind == "union_tag_invalid" else _blamed(path, value, message)
    where = f"{_place(document, at)}{dotted((*prefix, *path))}"
    if kind == "extra_forbidden":
        allowed = _names(model)
        return f"{where}: unknown key {path[-1]!r}{meant(str(path[-1]), allowed)}{_allowed(allowed)}"
    if kind == "missing":
        return _missing(path, document, prefix)
    if kind == "union_tag_invalid":
        given = str(item["ctx"]["tag"])
        allowed = [t.strip().strip("'") for t in item["ctx"]["expected_tags"].split(",")]
        return f"{where}.kind = {given!r}: unknown kind{meant(given, allowed)}{_allowed(allowed)}"
    if kind == "union_tag_not_found":
        return f"{where}: missing `kind`; say which one is meant"
    if kind == "literal_error":
        if isinstance(value, str) and value in re.split(r", | or ", item["ctx"]["expected"]):
            return f"{where} = {value!r}: is text, a number is wanted; write {value} without quotes"
        allowed = [t.strip().strip("'") for t in item["ctx"]["expected"].replace(" or ", ",").split(",")]
        return f"{where} = {_shown(value)}: not allowed{meant(str(value), allowed)}{_allowed(allowed)}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"{where} = {_shown(value)}: must be a mapping"
    if kind == "list_type":
        return f"{where} = {_shown(value)}: must be a list"
    message = message.removeprefix("Value error, ")
    shown = "" if isinstance(value, Mapping | list | BaseModel) else f" = {_shown(value)}"
    return f"{where}{shown}: {message}"


def _missing(path: Path_, document: Document, prefix: Path_) -> str:
    """A field that is not there; in a part, at the line of the `kind` that asks for it."""
    kind: Path_ = (*path[:-1], "kind")
    if path[-1] == "kind" or not document.has(kind):
        return f"{_place(document, path)}{dotted((*prefix, *path))}: missing; add it"
    where = f"{_place(document, kind)}{dotted((*prefix, *path))}"
    return f"{where}: missing; kind {document.at(kind)} needs it: add it"


def _shown(value: Any) -> str:
    """A value as it is written in YAML, cut where it is long."""
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    text = text or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _names(model: type[BaseModel] | None) -> list[str]:
    """The keys a model takes, as they are written in a job."""
    return [f.alias or n for n, f in model.model_fields.items()] if model else []


def _blamed(path: Path_, value: Any, message: str) -> Path_:
    """The field that a message about a whole mapping names first (`n_heads=8 is not …`), for its line.

    An item of a list (`pattern[1].n_heads=8 …`) is blamed also for what it takes from elsewhere.
    """
    for name in re.findall(r"([\w.\[\]]+)=", message):
        keys = [int(key) if key.isdigit() else key for key in re.findall(r"\w+", name)]
        inner, found = value, list[str | int]()
        for key in keys:
            inside = isinstance(inner, list | Mapping) and (
                key in inner if isinstance(inner, Mapping) else isinstance(key, int) and key < len(inner)
            )
            if not inside:
                break
            inner = inner[key]
            found.append(key)
        if found and (len(found) == len(keys) or isinstance(found[-1], int)):
            return (*path, *found)
    return path


def _allowed(names: list[str]) -> str:
    return f" (allowed: {', '.join(names)})" if names else ""
