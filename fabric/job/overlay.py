"""What is laid on a job as it is written: a scale, and `--set path=value`."""

from __future__ import annotations

from fabric.job.document import Document, JobError, Mark, read_value
from fabric.job.errors import explain
from fabric.job.schema import SECTIONS, JobConfig, base_path
from models.parts import meant


def check_form(scales: Document) -> None:
    """Raise JobError where a scale is no mapping."""
    for name, body in scales.data.items():
        if body is not None and not isinstance(body, dict):
            raise explain(scales, (name,), "a scale is a mapping of paths to values", ("scales",))


def lay_scale(document: Document, scales: Document, scale: str | None) -> None:
    """Lay a scale on a job's document, in place. Raises JobError for one that is not there."""
    if scale is None:
        return
    if scale not in scales.data:
        names = list(scales.data)
        known = f" (allowed: {', '.join(names)})" if names else "; the job defines none"
        raise JobError([f"--scale {scale}: no such scale{meant(scale, names)}{known}"])
    for text, value in (scales.data[scale] or {}).items():
        inner = scales.sub((scale, text))
        _put(document, str(text), Document(value, inner.marks), str(scales.mark((scale, text))))


def lay_set(document: Document, text: str) -> None:
    """Lay one `path=value` on a job's document, in place. Raises JobError for what is none, or points nowhere."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise JobError([f"--set {text}: write it as path=value, for example train.tokens=2M"])
    mark = Mark(f"--set {text}")
    _put(document, name.strip(), read_value(value, mark), str(mark))


def _put(document: Document, text: str, value: Document, where: str) -> None:
    path = base_path(text)
    allowed = [*(f.alias or n for n, f in JobConfig.model_fields.items()), *SECTIONS]
    if path[0] not in allowed:
        raise JobError(
            [
                f"{where}: {text!r} points nowhere{meant(str(path[0]), allowed)} (allowed: {', '.join(allowed)})"
            ]
        )
    document.put(_named_items(document, path, where), value)


def _named_items(document: Document, path: tuple[str | int, ...], where: str) -> tuple[str | int, ...]:
    """Take names for positions in lists of named things: search.phases.norm.keep -> search.phases[1].keep."""
    found: list[str | int] = []
    for key in path:
        try:
            here = document.at(tuple(found))
        except KeyError:
            here = None
        if isinstance(here, list) and isinstance(key, str):
            names = [item.get("name") if isinstance(item, dict) else None for item in here]
            if key not in names:
                known = [str(n) for n in names if n]
                message = f"{'.'.join(map(str, path))!r}: no item named {key!r}{meant(key, known)}"
                raise JobError([f"{where}: {message}; name one, or its place: 0 to {len(here) - 1}"])
            key = names.index(key)
        found.append(key)
    return tuple(found)
