"""What a corpus is to the rest of the room: a list of `Source` files, each with a rule for its documents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from fabric.paths import real_path, there
from kernels.folders import at_home
from models.parts import Part

SPLITS = ("train", "validation", "test")


class CorpusError(ValueError):
    """What a corpus holds cannot be used: a file that is unreadable, damaged or not text, or too little of it."""


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Errors of the file system (permissions, a broken disk) name the file, as a `CorpusError`."""
    try:
        yield
    except OSError as error:
        raise CorpusError(
            f"{path} cannot be read: {error.strerror or error}; mend it, or leave it out of the corpus"
        ) from None


@dataclass(frozen=True)
class Boundary:
    """Where a text file's documents begin.

    `where` says what a match of `pattern` (a regular expression over bytes, MULTILINE) means: a document
    begins at its `start`; at its `end`; or the match is not text at all and is left out (`drop`).
    `pattern=None`: the whole file is one document. With `start` and `end` the documents, joined, are the
    file: no byte is lost.
    """

    pattern: str | None = None
    where: str = "end"


@dataclass(frozen=True)
class Source:
    """One file of a corpus: its format, the rule for its documents, its published split (None: none)."""

    path: str
    format: str  # text | jsonl | parquet
    boundary: Boundary = Boundary()
    text_field: str = "text"
    split: str | None = None

    def identity(self, file_sha256: str) -> dict[str, Any]:
        """What of this source decides its documents: its bytes and its rule, never its path."""
        rule: Any = asdict(self.boundary) if self.format == "text" else self.text_field
        return {"sha256": file_sha256, "format": self.format, "rule": rule, "split": self.split}


class DataPart(Part):
    """Base of corpora and tokenizers: a part whose `Path` fields can be made absolute."""

    def resolved(self, base_dir: Path) -> Self:
        """The same part with every relative path made absolute (see `fabric.data.config.resolve_paths`)."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        changed = {name: find_path(v, base_dir) for name, v in values.items() if isinstance(v, Path)}
        return self.model_copy(update=changed) if changed else self


class CorpusConfig(DataPart):
    """Base of every corpus; one file in `fabric/data/corpora/` each. `LICENSE` is its text's, where it is known."""

    LICENSE: ClassVar[str | None] = None

    def is_here(self, cache_root: Path) -> bool:
        """Whether its files can be listed without fetching anything."""
        return True

    @abstractmethod
    def sources(self, cache_root: Path) -> list[Source]:
        """The corpus's files in a fixed order that does not depend on the file system's.

        Raises ValueError when there is nothing to read, naming what was looked for and what is allowed.
        """

    def streamed(self, cache_root: Path) -> list[Source]:
        """The files a stream reads where they lie, by path or URL; in the same order on every machine."""
        return self.sources(cache_root)


def find_path(path: Path, base_dir: Path) -> Path:
    """An existing absolute path: as given, or relative to `base_dir`, or relative to the current directory.

    Raises ValueError naming every place that was tried.
    """
    path = at_home(path)
    if (found := there(path)) is not None:
        return found
    tried = [path] if path.is_absolute() else [base_dir / path, Path.cwd() / path]
    for candidate in tried:
        if (found := real_path(candidate)).exists():
            return found
    places = list(dict.fromkeys(tried))
    raise ValueError(
        f"{str(path)!r} does not exist: {neither(places)}"
        if len(places) > 1
        else f"{places[0]} does not exist"
    )


def neither(places: Sequence[Path]) -> str:
    """Where a file was looked for: "neither A nor B", or "not A" for a single place."""
    return f"neither {' nor '.join(map(str, places))}" if len(places) > 1 else f"not {places[0]}"
