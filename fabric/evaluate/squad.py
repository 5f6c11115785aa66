"""SQuAD's files, v1.1 and v2: articles of paragraphs of questions, as one list of questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fabric.data.rows import Row, TaskDataError


@dataclass(frozen=True)
class Question:
    """A question on a context; `answers` are texts with the character each begins at, none where it is impossible.

    `where` is the place in the file.
    """

    id: str
    title: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]
    is_impossible: bool
    where: str

    @property
    def references(self) -> list[str]:
        """The answers' texts; of an impossible question "", as the official script has it."""
        return [text for text, _ in self.answers] or [""]


def read_squad(path: Path) -> list[Question]:
    """The questions of a file. Raises TaskDataError naming file and place for what is not SQuAD's form, for an answer
    that does not stand where it should in its context, and for a question that has none and is not impossible."""
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TaskDataError(f"{path} cannot be read: {error}") from None
    if not isinstance(body, dict):
        raise TaskDataError(f"{path}: SQuAD's files are an object with `data`, not a {type(body).__name__}")
    found = [q for article in Row(body, str(path)).each("data") for q in _questions(article)]
    if not found:
        raise TaskDataError(f"{path} holds no questions")
    return found


def _questions(article: Row) -> Iterator[Question]:
    title = article.fields.get("title", "")
    for paragraph in article.each("paragraphs"):
        context = paragraph.text("context")
        for row in paragraph.each("qas"):
            is_impossible = bool(row.fields.get("is_impossible", False))
            answers = () if is_impossible else tuple(_answer(a, context) for a in row.each("answers"))
            if not answers and not is_impossible:
                raise TaskDataError(f"{row.where}: it has no answers and is not said to be impossible")
            text = row.text("question")
            yield Question(str(row["id"]), str(title), context, text, answers, is_impossible, row.where)


def _answer(row: Row, context: str) -> tuple[str, int]:
    text, start = row.text("text"), row["answer_start"]
    if not isinstance(start, int) or context[start : start + len(text)] != text or not text or start < 0:
        raise TaskDataError(f"{row.where}: {text!r} does not stand at character {start!r} of its context")
    return text, start
