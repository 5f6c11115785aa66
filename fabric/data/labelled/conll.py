"""Tagged words in the forms they are published in: CoNLL's columns and Universal Dependencies' CoNLL-U."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fabric.data.rows import TaskDataError

DOCUMENT_START = "-DOCSTART-"
CONLLU_COLUMNS = 10
UPOS_COLUMN = 3


@dataclass(frozen=True)
class Sentence:
    """Words and their tags, and where they were written: `file:line`."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str


def read_sentences(path: Path, form: Literal["conll", "conllu"]) -> list[Sentence]:
    """The sentences of a file.

    "conll": the word in the first column, the tag in the last, a line without words between sentences (CoNLL-2003,
    WNUT-17); columns are parted by tabs where the line has one, else by spaces. "conllu": the form and its universal
    part of speech; words that were contracted count, what they were contracted to and empty nodes do not. Raises
    TaskDataError naming file and line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{path} is not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise TaskDataError(f"{path} cannot be read: {error.strerror or error}") from None
    read = _conll if form == "conll" else _conllu
    found = [
        Sentence(tuple(w for w, _ in pairs), tuple(t for _, t in pairs), f"{path}:{line}")
        for line, pairs in _sentences(path, text, read)
    ]
    if not found:
        raise TaskDataError(f"{path} holds no sentences")
    return found


Pair = tuple[str, str]


def _sentences(path: Path, text: str, read: object) -> Iterator[tuple[int, list[Pair]]]:
    assert callable(read)
    pairs: list[Pair] = []
    begun = 1
    # Not splitlines: a word may hold U+0085 or U+2028.
    for number, line in enumerate((*text.split("\n"), ""), 1):
        line = line.removesuffix("\r")
        if not line.strip():
            if pairs:
                yield begun, pairs
            pairs = []
            continue
        pair = read(line, f"{path}:{number}")
        if pair is not None:
            begun = begun if pairs else number
            pairs.append(pair)


def _conll(line: str, where: str) -> Pair | None:
    columns = line.split("\t") if "\t" in line else line.split()
    if columns[0] == DOCUMENT_START:
        return None
    if len(columns) < 2 or not columns[0].strip() or not columns[-1].strip():
        raise TaskDataError(f"{where}: {line!r} has no word and tag; write the word first and the tag last")
    return columns[0], columns[-1].strip()


def _conllu(line: str, where: str) -> Pair | None:
    if line.startswith("#"):
        return None
    columns = line.split("\t")
    if len(columns) != CONLLU_COLUMNS:
        raise TaskDataError(f"{where}: {len(columns)} columns where CoNLL-U has {CONLLU_COLUMNS}")
    if not columns[0].isdigit():  # 8-9: a contraction, whose words follow; 8.1: a word that is not there
        return None
    return columns[1], columns[UPOS_COLUMN]
