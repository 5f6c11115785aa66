"""DROP's exact match and F1, and its files (Dua et al. 2019, arXiv 1903.00161, section 5).

An answer is one span or several. Spans become bags of words; those of guess and reference are paired one to one so that
the sum of their F1 is highest, and the mean over the longer side is the answer's F1, to two decimals as in the official
script. Spans of which a reference holds numbers and the guess none of these are worth nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from fabric.data.rows import Row, TaskDataError
from fabric.evaluate.answers import ARTICLES, PUNCTUATION

# Commas in numbers (1,000) and dates (May 3, 1920) separate nothing.
_SEPARATOR = re.compile(r";|,(?=\s|$)(?!(?<=\d,)\s+\d{4}\b)")


def spans_of(text: str) -> list[str]:
    """The spans of a text: between semicolons, and between commas before a space that are no date's.

    "and" separates nothing, for spans may hold it ("Trinidad and Tobago"); after a comma it is left out.
    """
    parts = [re.sub(r"^\s*and\s+", "", part).strip() for part in _SEPARATOR.split(text)]
    return [part for part in parts if part] or [""]


def exact(guess: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """1.0 where the guess' spans are those of a reference, in any order. Raises ValueError without references."""
    _some(references)
    spans = list(map(normalised, guess))
    return float(any(_same(spans, list(map(normalised, r))) for r in references))


def f1(guess: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The best F1 over the references. Raises ValueError without references."""
    _some(references)
    return max(_f1(_bags(guess), _bags(r)) for r in references)


def normalised(text: str) -> str:
    """Lower case words, split at blanks and hyphens, without punctuation and articles; numbers in one form."""
    words = (ARTICLES.sub(" ", _word(w)).split() for w in re.split("[ -]", text.lower()))
    return " ".join(part for parts in words for part in parts)


def _word(word: str) -> str:
    bare = word if _is_number(word) else word.translate(PUNCTUATION)
    return str(float(bare)) if _is_number(bare) else bare


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _same(guess: Sequence[str], reference: Sequence[str]) -> bool:
    """As many spans, and none that the other side has not: the script compares sets."""
    return len(guess) == len(reference) and set(guess) == set(reference)


def _bags(spans: Sequence[str]) -> list[set[str]]:
    """Sets, as in the script: how often a word occurs in a span makes no difference."""
    return [set(normalised(span).split()) for span in spans]


def _f1(guess: Sequence[set[str]], reference: Sequence[set[str]]) -> float:
    pairs = np.array([[_overlap(g, r) for g in guess] for r in reference])
    rows, columns = linear_sum_assignment(pairs, maximize=True)
    each = np.zeros(max(pairs.shape))
    each[rows] = pairs[rows, columns]
    return float(np.round(each.mean(), 2))  # Python's round would tell 0.325 otherwise than the script


def _overlap(guess: set[str], reference: set[str]) -> float:
    numbers = set(filter(_is_number, reference))
    if numbers and not numbers & guess:
        return 0.0
    if not guess or not reference:
        return float(guess == reference)
    shared = len(guess & reference)
    precision, recall = shared / len(guess), shared / len(reference)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def _some(references: Sequence[Sequence[str]]) -> None:
    if not references or not all(references):
        raise ValueError("an answer is judged by at least one reference, each of at least one span")


# ---- files


def read_drop(path: Path) -> list[Row]:
    """The questions of the official file (`drop_dataset_dev.json`: passages by name, with `qa_pairs`), with passage.

    Raises TaskDataError naming file and place for what has another form.
    """
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TaskDataError(f"{path} cannot be read: {error}") from None
    if not isinstance(body, dict):
        raise TaskDataError(
            f"{path}: DROP's files are an object of passages by name, not a {type(body).__name__}; for rows of one "
            "question each name the file drop/validation.jsonl"
        )
    file = Row(body, str(path))
    rows = [row for name in body for row in _of_passage(file.inner(name), name)]
    if not rows:
        raise TaskDataError(f"{path} holds no questions")
    return rows


def _of_passage(passage: Row, name: str) -> Iterator[Row]:
    about = {"section_id": name, "passage": passage.text("passage")}
    for pair in passage.each("qa_pairs"):
        yield Row({**about, **pair.fields}, pair.where)


def references_of(row: Row) -> list[list[str]]:
    """The answers that a guess is held to, each a list of spans. Raises TaskDataError where there is none.

    Of the official form `answer` and each of `validated_answers`. The hub's `ucinlp/drop` has put the spans of all
    answers into one list: numbers and dates are answers by themselves, while spans are taken as those of one answer,
    for naming one of several must not count as naming all.
    """
    if "answer" not in row.fields:
        return _of_spans(row.inner("answers_spans"))
    found = [spans for answer in (row.inner("answer"), *_validated(row)) if (spans := _spans(answer))]
    if not found:
        raise TaskDataError(
            f"{row.where}: its answers hold no number, spans or date; a question has one of them"
        )
    return [list(spans) for spans in dict.fromkeys(map(tuple, found))]


def _of_spans(row: Row) -> list[list[str]]:
    spans = list(dict.fromkeys(row.texts("spans")))
    types = set(row.texts("types")) if "types" in row.fields else {"span"}
    if unknown := sorted(types - {"span", "number", "date"}):
        raise TaskDataError(
            f"{row.where}: types = {unknown[0]!r} is no type; allowed: 'span', 'number', 'date'"
        )
    return [spans] if types == {"span"} else [[span] for span in spans]


def _validated(row: Row) -> list[Row]:
    """A list of answers, or (the hub's `EleutherAI/drop`) lists of what they hold."""
    values = row.fields.get("validated_answers", [])
    if not isinstance(values, Mapping):
        return row.each("validated_answers") if values else []
    columns = {name: values.get(name) for name in ("number", "date", "spans")}
    if (
        not all(isinstance(c, list) for c in columns.values())
        or len({len(c or []) for c in columns.values()}) > 1
    ):
        raise TaskDataError(
            f"{row.where}: validated_answers has no number, date and spans of the same length"
        )
    each = zip(*(column or [] for column in columns.values()), strict=True)
    places = (f"{row.where} validated_answers[{i}]" for i in range(len(columns["number"] or [])))
    return [Row(dict(zip(columns, v, strict=True)), place) for v, place in zip(each, places, strict=True)]


def _spans(answer: Row) -> list[str]:
    """An answer's number, else its spans, else its date; empty where it has none."""
    number, spans = answer.fields.get("number"), answer.fields.get("spans")
    if number not in (None, ""):
        if isinstance(number, bool | list | dict):
            raise TaskDataError(f"{answer.where}: number = {number!r} is no number")
        return [str(number)]
    if spans:
        return answer.texts("spans")
    date: Mapping[str, Any] = answer.inner("date").fields if answer.fields.get("date") else {}
    written = " ".join(str(date[part]) for part in ("day", "month", "year") if date.get(part))
    return [written] if written else []
