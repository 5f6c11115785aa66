"""Questions in SQuAD's JSON form, v1.1 and v2.0: articles, their paragraphs, and questions on each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fabric.evaluate.rows import Row, Table, TaskDataError, read_table


@dataclass(frozen=True)
class Question:
    """A question on a paragraph. `answers`: (text, first character in the context), none where it is impossible."""

    id: str
    title: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]
    is_impossible: bool
    where: str

    @property
    def references(self) -> tuple[str, ...]:
        """The answers' texts, each once; the empty text where the question has none."""
        return tuple(dict.fromkeys(text for text, _ in self.answers)) or ("",)


def read_squad(path: Path) -> list[Question]:
    """The questions of a file, in its order.

    Raises TaskDataError naming the place of what is missing, no answer of its context, or asked under an id twice.
    """
    articles = read_table(Table((path.name,)), path.parent)
    found: dict[str, Question] = {}
    for question in (q for article in articles for q in _of_article(article)):
        if question.id in found:
            raise TaskDataError(
                f"{question.where}: id {question.id!r} is that of {found[question.id].where} too"
            )
        found[question.id] = question
    if not found:
        raise TaskDataError(f"{path} holds no questions")
    return list(found.values())


def _of_article(article: Row) -> Iterator[Question]:
    for paragraph in article.each("paragraphs"):
        for row in paragraph.each("qas"):
            yield _question(row, article.text("title"), paragraph.text("context"))


def _question(row: Row, title: str, context: str) -> Question:
    is_impossible = row.fields.get("is_impossible", False)
    if not isinstance(is_impossible, bool):
        raise TaskDataError(f"{row.where}: is_impossible = {is_impossible!r} is neither true nor false")
    answers = tuple(_answer(a, context) for a in row.each("answers"))
    if bool(answers) == is_impossible:
        says = "is impossible but has answers" if is_impossible else "has no answer, but is not is_impossible"
        raise TaskDataError(f"{row.where}: the question {says}")
    return Question(row.text("id"), title, context, row.text("question"), answers, is_impossible, row.where)


def _answer(row: Row, context: str) -> tuple[str, int]:
    text, start = row.text("text"), row["answer_start"]
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise TaskDataError(f"{row.where}: answer_start = {start!r} is no character's number (from 0 on)")
    if not text or context[start : start + len(text)] != text:
        there = context[start : start + len(text)]
        raise TaskDataError(f"{row.where}: the answer {text!r} is not at character {start} ({there!r} is)")
    return text, start
