"""Errors about what the files of a job hold, with the line of the job that names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fabric.data.corpus import CorpusError
from fabric.job.document import Path_
from fabric.job.errors import explain
from fabric.job.load import Job

CORPUS_PATHS = ("data", "data.corpus", "data.corpus.path", "data.corpus.url", "data.corpus.name")


@contextmanager
def naming_corpus(job: Job) -> Iterator[None]:
    """In the block, an error about a corpus's content is a JobError at the value that names the corpus.

    That is `base.data.corpus`, or the value of an axis or arm that names another one.
    """
    try:
        yield
    except CorpusError as error:
        message = str(error)
        named = [place for place, name in _corpora(job) if name and name in message]
        raise explain(job.document, named[-1] if named else ("base", "data", "corpus"), message) from None


def _corpora(job: Job) -> Iterator[tuple[Path_, str]]:
    """Where a job names a corpus, and the name; the base first."""
    yield from _below(job, ("base", "data"), "data")
    axes: list[tuple[Path_, Any]] = [(("search", "axes", i), a) for i, a in enumerate(job.config.search.axes)]
    for p, phase in enumerate(job.config.search.phases):
        axes += [(("search", "phases", p, "axes", i), a) for i, a in enumerate(phase.axes)]
    for place, axis in axes:
        for i in range(len(axis.values or ())):
            yield from _below(job, (*place, "values", i), axis.path or "")
        for i, arm in enumerate(axis.arms or ()):
            for path in arm.set:
                yield from _below(job, (*place, "arms", i, "set", path), path)


def _below(job: Job, place: Path_, path: str) -> Iterator[tuple[Path_, str]]:
    """The corpus in a value that an axis puts at a path."""
    path = path.removeprefix("base.")
    if path not in CORPUS_PATHS:
        return
    keys = ["data", "corpus", "path"][path.count(".") + 1 :]
    for n in range(len(keys), -1, -1):
        here = (*place, *keys[:n])
        if job.document.has(here):
            value = job.document.at(here)
            value = value.get("name", "") if isinstance(value, dict) else value
            yield here, _tail(str(value))
            return


def _tail(name: str) -> str:
    """A corpus's name as its errors write it: paths made absolute still end so."""
    return name.removeprefix("hub:").lstrip("~./") if len(name) > 1 else name
