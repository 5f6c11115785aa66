"""Formats and document rules of a corpus's files, wherever they lie: on this machine or behind a URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Literal, Self

from pydantic import Field, model_validator

from fabric.data.corpus import Boundary, CorpusConfig, CorpusError, Source

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
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


class TextFiles(CorpusConfig):
    """Base of corpora of text, JSON Lines and Parquet files: their format and what a document is in them.

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
    `format` overrides the file extension.
    """

    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    text_field: str = "text"
    documents: Literal["auto", "blank_line", "line", "file", "wikitext", "endoftext"] = "auto"
    separator: str | None = Field(default=None, min_length=1)
    boundary: str | None = Field(default=None, min_length=1)

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

    def is_known(self, name: str) -> bool:
        """Whether a file of this name has a format."""
        return self.format != "auto" or PurePosixPath(name).suffix.lower() in FORMATS

    def refuse_packed(self, where: str, names: Iterable[str]) -> None:
        """Raises CorpusError where a text among the names is compressed: it would be left out without a word."""
        paths = [PurePosixPath(name) for name in names]
        packed = [str(p) for p in paths if p.suffix.lower() in PACKED and self.is_known(p.stem)]
        if packed and self.format == "auto":
            more = f" and {len(packed) - 3} more" if len(packed) > 3 else ""
            raise CorpusError(
                f"{where}: {', '.join(packed[:3])}{more} would be left out, being compressed: unpack it, or choose "
                "the files to read with include: PATTERN"
            )

    def no_text(self, where: str, include: str, found: list[str]) -> CorpusError:
        """What to say when none of the names found is known."""
        suffixes = sorted({PurePosixPath(n).suffix or PurePosixPath(n).name for n in found})
        return CorpusError(
            f"{where} holds no text that matches {include!r}: found {', '.join(suffixes) or 'no files'}; "
            f"allowed extensions: {', '.join(FORMATS)} (or set format: text | jsonl | parquet)"
        )

    def source(self, path: str, split: str | None, head: Callable[[], bytes]) -> Source:
        """The source of one file; `head` reads its first MiB, where the rule has to be found out.

        Raises CorpusError for an extension that is no format's.
        """
        form = self.format
        if form == "auto":
            suffix = PurePosixPath(path).suffix
            if suffix.lower() not in FORMATS:
                raise CorpusError(
                    f"{path}: unknown extension {suffix!r}; allowed: {', '.join(FORMATS)} "
                    "(or set format: text | jsonl | parquet)"
                )
            form = FORMATS[suffix.lower()]  # type: ignore[assignment]
        boundary = self._rule(head) if form == "text" else Boundary()
        return Source(path=path, format=form, boundary=boundary, text_field=self.text_field, split=split)

    def _rule(self, head: Callable[[], bytes]) -> Boundary:
        if self.separator is not None:
            return Boundary(re.escape(self.separator), "drop")
        if self.boundary is not None:
            return Boundary(self.boundary, "end")
        return RULES[self.documents] if self.documents != "auto" else _rule_of(head())


def _rule_of(head: bytes) -> Boundary:
    if b"<|endoftext|>" in head:
        return RULES["endoftext"]
    wikitext = RULES["wikitext"]
    if re.search((wikitext.pattern or "").encode(), head, re.MULTILINE):
        return wikitext
    return RULES["blank_line"]


def splits_of_names(where: str, names: list[str]) -> dict[str, str | None]:
    """The published split of every name, or none of any. Raises CorpusError where some name one and others do not."""
    splits = {name: published_split(name) for name in names}
    unnamed = [name for name, split in splits.items() if split is None]
    if unnamed and len(unnamed) < len(splits):
        raise CorpusError(
            f"{where} holds files of published splits beside others ({', '.join(unnamed[:5])}); "
            "choose the ones to read with include: PATTERN"
        )
    return splits


def published_split(name: str) -> str | None:
    """The split a relative path names (`wiki/train-00.txt`, `x_test.jsonl`), or None.

    The file's own name counts before its folders'; digits end a word (`dev32`).
    """
    for part in reversed(PurePosixPath(name).with_suffix("").parts):
        named = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SPLIT_NAMES}
        if len(named) == 1:
            return named.pop()
    return None


def is_hidden_or_about(name: str) -> bool:
    """Whether a relative path is hidden, or of a file about the data (README, LICENSE)."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") for part in parts) or bool(ABOUT_THE_DATA.match(parts[-1]))


def check_pattern(pattern: str) -> str:
    """A glob pattern inside a folder. Raises ValueError for one that leaves it, or that glob cannot read."""
    parts = PurePosixPath(pattern).parts
    if not parts or PurePosixPath(pattern).is_absolute() or ".." in parts:
        raise ValueError(
            f"{pattern!r} is not a pattern inside the folder; write one such as *.txt or **/*.txt"
        )
    if any("**" in part and part != "**" for part in parts):
        raise ValueError(
            f"{pattern!r}: ** stands alone between slashes; write **/*.txt for files at any depth"
        )
    return pattern
