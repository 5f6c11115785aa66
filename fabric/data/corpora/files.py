"""Local text, JSON Lines or Parquet: one file, or a folder of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import field_validator

from fabric.data.corpus import CorpusError, Source, reading
from fabric.data.rules import PROBE_BYTES, TextFiles, check_pattern, is_hidden_or_about, splits_of_names
from fabric.paths import there
from kernels.folders import at_home

MOST_ENTRIES = 200_000  # files and folders looked at in one corpus
EVERYTHING = "**/*"


class FilesConfig(TextFiles):
    """A file or a folder (read recursively, in alphabetical order) of .txt, .md, .jsonl or .parquet.

    What a document is in them is said by `documents`, `separator` or `boundary` (see `fabric.data.rules`).

    Files called train, valid (val, dev, validation) or test, or in folders called so, are those splits as
    published; a split that is not there is cut from train. README, SOURCE, LICENSE and hidden files are not
    text and are left out. `include` narrows a folder.
    """

    kind: Literal["files"]
    path: Path
    include: str = EVERYTHING

    @field_validator("path", mode="before")
    @classmethod
    def _named(cls, path: Any) -> Any:
        if isinstance(path, str) and not path.strip():
            raise ValueError("an empty path; name a file or folder (the job's own folder is '.')")
        if isinstance(path, str) and "://" in path:
            raise ValueError(f"{path!r} is a URL, not a path; write corpus: {{kind: url, url: {path}}}")
        return path

    @field_validator("include")
    @classmethod
    def _pattern(cls, pattern: str) -> str:
        return check_pattern(pattern)

    def resolved(self, base_dir: Path) -> Self:
        found = super().resolved(base_dir)
        if there(found.path) is None:
            found._refuse_what_is_no_corpus()
        return found

    def sources(self, cache_root: Path) -> list[Source]:
        """The files to read, with format, document rule and published split."""
        root = at_home(self.path)
        if not root.exists():
            raise CorpusError(
                f"corpus path {str(root)!r} does not exist; give a text, .jsonl or .parquet file or folder"
            )
        self._refuse_what_is_no_corpus()
        if root.is_file():
            return [self._source(root, None)]
        found = {f.relative_to(root).as_posix(): f for f in self._entries(root) if _is_content(f, root)}
        known = sorted(n for n in found if self.is_known(n))
        if not known:
            raise self.no_text(str(root), self.include, list(found))
        self.refuse_packed(str(root), sorted(found))
        splits = splits_of_names(str(root), known)
        return [self._source(found[name], splits[name]) for name in known]

    def _refuse_what_is_no_corpus(self) -> None:
        root = at_home(self.path).resolve()
        if not root.is_file() and not root.is_dir():
            raise CorpusError(
                f"{root} is neither a regular file nor a folder; give a text, .jsonl or .parquet file"
            )
        home = Path(os.path.expanduser("~")).resolve()
        wide = {Path(root.anchor): "the root of the file system", home: "a home folder"}
        name = wide.get(root, "the folder of home folders" if root in home.parents else "")
        if name and Path(self.include).parts[0] == "**":
            raise CorpusError(
                f"{root} is {name}, and all of it would be searched for text; name the folder with the texts, or "
                "say where they are in it with include: texts/*.txt"
            )

    def _entries(self, root: Path) -> Iterator[Path]:
        """What the pattern matches. Raises CorpusError where there is more than a corpus has."""
        with reading(root):
            for number, entry in enumerate(root.glob(self.include)):
                if number == MOST_ENTRIES:
                    raise CorpusError(
                        f"{root} holds more than {MOST_ENTRIES} files and folders that match {self.include!r}; "
                        "name the folder with the texts, or narrow it with include: PATTERN"
                    )
                yield entry

    def _source(self, file: Path, split: str | None) -> Source:
        def head() -> bytes:
            with reading(file), file.open("rb") as opened:
                return opened.read(PROBE_BYTES)

        return self.source(str(file), split, head)


def _is_content(file: Path, root: Path) -> bool:
    return file.is_file() and not is_hidden_or_about(file.relative_to(root).as_posix())
