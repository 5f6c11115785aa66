"""SQuAD's files, v1.1 and v2: articles of paragraphs of questions, as one list of questions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fabric.data.rows import Row, Table, TaskDataError, file_of, read_table


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
    that does not stand where it should in its context, for a question that has none and is not impossible, and for an
    id that two questions have."""
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TaskDataError(f"{path} cannot be read: {error}") from None
    if not isinstance(body, dict):
        raise TaskDataError(f"{path}: SQuAD's files are an object with `data`, not a {type(body).__name__}")
    found = [q for article in Row(body, str(path)).each("data") for q in _questions(article)]
    if not found:
        raise TaskDataError(f"{path} holds no questions")
    places: dict[str, str] = {}
    for question in found:
        if question.id in places:
            raise TaskDataError(
                f"{question.where}: id = {question.id!r} is that of {places[question.id]} too; give every question one "
                "of its own"
            )
        places[question.id] = question.where
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


@dataclass(frozen=True)
class SpanSet:
    """A data set of questions whose answers stand in their contexts. `files`: of each split, paths below the data
    folder, tried in order. `hub`: the repository, whose rows are questions (None: it is on none)."""

    name: str
    about: str
    files: Mapping[str, tuple[str, ...]]
    hub: str | None
    has_impossible: bool = False

    def read(self, split: str, folder: Path | None) -> list[Question] | None:
        """The questions of a split; None where it is not published, or a training file is not in the folder. Raises
        TaskDataError."""
        if split not in self.files:
            return None
        path = file_of(self.files[split], folder)
        if path is None and folder is not None and split == "train":
            return None
        found = read_squad(path) if path is not None else self._from_hub(split, folder)
        if not self.has_impossible and (wrong := next((q for q in found if q.is_impossible), None)):
            hint = "; where some have none, say unanswerable: true" if self.hub is None else ""
            raise TaskDataError(
                f"{wrong.where}: a question of {self.name} has an answer; this one has none{hint}"
            )
        return found

    def _from_hub(self, split: str, folder: Path | None) -> list[Question]:
        published = {"test": "validation"}.get(split, split)
        hub = None if self.hub is None else (self.hub, None, published)
        rows = read_table(Table(self.files[split], hub), folder)
        return [_hub_question(row) for row in rows]


def _hub_question(row: Row) -> Question:
    answers, context = row.inner("answers"), row.text("context")
    pairs = [
        Row({"text": text, "answer_start": start}, row.where)
        for text, start in zip(answers["text"], answers["answer_start"], strict=True)
    ]
    spans = tuple(_answer(pair, context) for pair in pairs)
    return Question(
        row.text("id"), row.text("title"), context, row.text("question"), spans, not spans, row.where
    )


_ALL = (
    SpanSet(
        "squad",
        "the answer to a question in a paragraph of Wikipedia (arXiv 1606.05250)",
        {
            "train": ("squad/train-v1.1.json",),
            "test": ("squad/dev-v1.1.json", "squad/dev-v1.1.rebuilt.json"),
        },
        "rajpurkar/squad",
    ),
    SpanSet(
        "squad_v2",
        "the same, where some questions have no answer (arXiv 1806.03822)",
        {"train": ("squad/train-v2.0.json",), "test": ("squad/dev-v2.0.json",)},
        "rajpurkar/squad_v2",
        has_impossible=True,
    ),
)
SPAN_SETS = {s.name: s for s in _ALL}
