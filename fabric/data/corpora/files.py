"""Local text, JSON Lines or Parquet: one file, or a folder of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from fabric.data.corpus import Boundary, CorpusConfig, Source

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
    include: str = "**/*"
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

    def sources(self, cache_root: Path) -> list[Source]:
        """The files to read, with format, document rule and published split."""
        root = self.path.expanduser()
        if not root.exists():
            raise ValueError(
                f"corpus path {str(root)!r} does not exist; give a text, .jsonl or .parquet file or folder"
            )
        if root.is_file():
            return [self._source(root, None)]
        found = {f.relative_to(root).as_posix(): f for f in root.glob(self.include) if _is_content(f, root)}
        known = {
            n: f for n, f in sorted(found.items()) if self.format != "auto" or f.suffix.lower() in FORMATS
        }
        if not known:
            seen = ", ".join(sorted({f.suffix or f.name for f in found.values()})) or "no files"
            raise ValueError(
                f"{root} holds no text that matches {self.include!r}: found {seen}; allowed extensions: "
                f"{', '.join(FORMATS)} (or set format: text | jsonl | parquet)"
            )
        splits = {name: published_split(name) for name in known}
        unnamed = [name for name, split in splits.items() if split is None]
        if unnamed and len(unnamed) < len(splits):
            raise ValueError(
                f"{root} holds files of published splits beside others ({', '.join(unnamed[:5])}); "
                "choose the ones to read with include: PATTERN"
            )
        return [self._source(f, splits[name]) for name, f in known.items()]

    def _source(self, file: Path, split: str | None) -> Source:
        form = FORMATS.get(file.suffix.lower()) if self.format == "auto" else self.format
        if form is None:
            raise ValueError(
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
        with file.open("rb") as opened:
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
