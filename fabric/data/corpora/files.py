"""Local text, JSON Lines or Parquet: one file, or a folder of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fabric.data.corpus import Boundary, CorpusConfig, CorpusError, Source, at_home, reading

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
RULES = {
    "blank_line": Boundary(r"\n(?:[ \t\r]*\n)+", "end"),
    "line": Boundary(r"\n(?:[ \t\r]*\n)*", "end"),
    "file": Boundary(None),
    "wikitext": Boundary(r"^ = [^=\n][^\n]* = ?\r?\n", "start"),
    "endoftext": Boundary(r"\s*<\|endoftext\|>\s*", "drop"),
}
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
ABOUT_THE_DATA = re.compile(r"^(readme|source|licen[cs]e|copying|notice|citation|manifest)\b", re.IGNORECASE)
PROBE_BYTES = 1 << 20
MOST_ENTRIES = 200_000  # files and folders looked at in one corpus
EVERYTHING = "**/*"


class FilesConfig(CorpusConfig):
    """A file or a folder (read recursively, in alphabetical order) of .txt, .md, .jsonl or .parquet.

    Documents of a text file, by `documents`:

    - auto: `<|endoftext|>` if it occurs in the first MiB, else wikitext if there is a line ` = Title = `,
      else blank_line
    - blank_line: one or more blank lines end a document
    - line: each line is one
    - file: the whole file is one
    - wikitext: a line ` = Title = ` begins one
    - endoftext: `<|endoftext|>` separates them and, with the white space around it, is left out

    Or by `separator`, a literal string that is left out; or by `boundary`, a regular expression over bytes at
    whose match's end a new document begins. Everything but separators is kept, so the documents joined are
    the file. Each line of a .jsonl file and each row of a .parquet file is a document: its `text_field`.

    Files called train, valid (val, dev, validation) or test, or in folders called so, are those splits as
    published; a split that is not there is cut from train. README, SOURCE, LICENSE and hidden files are not
    text and are left out. `include` narrows a folder, `format` overrides the file extension.
    """

    kind: Literal["files"]
    path: Path
    include: str = EVERYTHING
    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    text_field: str = "text"
    documents: Literal["auto", "blank_line", "line", "file", "wikitext", "endoftext"] = "auto"
    separator: str | None = Field(default=None, min_length=1)
    boundary: str | None = Field(default=None, min_length=1)

    @field_validator("path", mode="before")
    @classmethod
    def _named(cls, path: Any) -> Any:
        if isinstance(path, str) and not path.strip():
            raise ValueError("an empty path; name a file or folder (the job's own folder is '.')")
        return path

    @field_validator("include")
    @classmethod
    def _pattern(cls, pattern: str) -> str:
        parts = Path(pattern).parts
        if not parts or Path(pattern).is_absolute() or ".." in parts:
            raise ValueError(
                f"{pattern!r} is not a pattern inside the folder; write one such as *.txt or **/*.txt"
            )
        if any("**" in part and part != "**" for part in parts):
            raise ValueError(
                f"{pattern!r}: ** stands alone between slashes; write **/*.txt for files at any depth"
            )
        return pattern

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        given = [self.documents != "auto", self.separator is not None, self.boundary is not None]
        if sum(given) > 1:
            raise ValueError("give one of documents, separator and boundary, not several")
        if self.boundary is not None:
            try:
                re.compile(self.boundary.encode())
            except re.error as error:
                raise ValueError(f"boundary {self.boundary!r} is not a regular expression: {error}") from None
        return self

    def resolved(self, base_dir: Path) -> Self:
        found = super().resolved(base_dir)
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
        known = {
            n: f for n, f in sorted(found.items()) if self.format != "auto" or f.suffix.lower() in FORMATS
        }
        if not known:
            seen = ", ".join(sorted({f.suffix or f.name for f in found.values()})) or "no files"
            raise CorpusError(
                f"{root} holds no text that matches {self.include!r}: found {seen}; allowed extensions: "
                f"{', '.join(FORMATS)} (or set format: text | jsonl | parquet)"
            )
        splits = {name: published_split(name) for name in known}
        unnamed = [name for name, split in splits.items() if split is None]
        if unnamed and len(unnamed) < len(splits):
            raise CorpusError(
                f"{root} holds files of published splits beside others ({', '.join(unnamed[:5])}); "
                "choose the ones to read with include: PATTERN"
            )
        return [self._source(f, splits[name]) for name, f in known.items()]

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
        form = FORMATS.get(file.suffix.lower()) if self.format == "auto" else self.format
        if form is None:
            raise CorpusError(
                f"{file}: unknown extension {file.suffix!r}; allowed: {', '.join(FORMATS)} "
                "(or set format: text | jsonl | parquet)"
            )
        boundary = self._rule(file) if form == "text" else Boundary()
        return Source(path=str(file), format=form, boundary=boundary, text_field=self.text_field, split=split)

    def _rule(self, file: Path) -> Boundary:
        if self.separator is not None:
            return Boundary(re.escape(self.separator), "drop")
        if self.boundary is not None:
            return Boundary(self.boundary, "end")
        if self.documents != "auto":
            return RULES[self.documents]
        with reading(file), file.open("rb") as opened:
            head = opened.read(PROBE_BYTES)
        if b"<|endoftext|>" in head:
            return RULES["endoftext"]
        wikitext = RULES["wikitext"]
        if re.search((wikitext.pattern or "").encode(), head, re.MULTILINE):
            return wikitext
        return RULES["blank_line"]


def _is_content(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and not hidden and not ABOUT_THE_DATA.match(file.name)


def published_split(name: str) -> str | None:
    """The split a relative path names (`wiki/train-00.txt`, `x_test.jsonl`), or None.

    The file's own name counts before its folders'; digits end a word (`dev32`).
    """
    for part in reversed(Path(name).with_suffix("").parts):
        named = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SPLIT_NAMES}
        if len(named) == 1:
            return named.pop()
    return None
