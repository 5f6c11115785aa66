"""LongBench v2 (Bai et al. 2024, arXiv 2412.15204): questions with four choices on long texts, by likelihood.

The prompt is the official one without examples. The official protocol generates up to 128 tokens and reads the letter
out of them (`parsed`); here, as small models seldom keep to a form, the answer is the likeliest of the four letters
after the prompt and "The correct answer is (". A prompt that is too long loses its middle, as in the official code.
`context=false` asks without the text: what a model gets so, it did not read. Guessing gets 1 in 4.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from fabric.data.rows import Row, Table, TaskDataError, read_table
from fabric.evaluate.generation import cut
from fabric.evaluate.likelihood import ROWS, Request, likelihoods
from fabric.evaluate.measures import Among, Measure, Share
from fabric.evaluate.options import is_right
from fabric.evaluate.task import Asked, Outcome, Ran, Task

if TYPE_CHECKING:
    from fabric.evaluate.subject import Subject

TABLE = Table(("longbench_v2/data.json",), hub=("THUDM/LongBench-v2", None, "train"))
LETTERS = "ABCD"
NUMBERS = {letter: i for i, letter in enumerate(LETTERS)}
LEAD = "\n\nThe correct answer is ("
GROUPS = {"difficulty": ("easy", "hard"), "length": ("short", "medium", "long")}
FORM = 'Format your response as follows: "The correct answer is (insert answer here)".'
PATTERNS = (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])")


@dataclass(frozen=True)
class Item:
    """A question: its whole prompt, the right choice's number, and the groups that it is of."""

    prompt: str
    answer: int
    difficulty: str
    length: str
    where: str


@dataclass(frozen=True)
class Prepared:
    """Items, of each one request a letter, and whether its prompt was cut."""

    items: tuple[Item, ...]
    requests: list[Request]
    is_cut: list[bool]


@dataclass(frozen=True, kw_only=True)
class LongBenchTask(Task):
    """Setting: `context`: whether the text is shown."""

    KIND: ClassVar[str] = "longbench_v2"
    SETTINGS: ClassVar[tuple[str, ...]] = ("context",)

    context: bool = True

    def load(self, asked: Asked) -> list[Item]:
        """Raises TaskDataError where data is missing or a row is not as it should be."""
        return [_item(row, self.context) for row in read_table(TABLE, asked.folder)[: asked.limit]]

    def prepare(self, items: Sequence[Item], subject: Subject) -> Prepared:
        """Prompts in ids, the first and last half of what the model takes. Raises TaskDataError where nothing fits."""
        lead, letters = _letters(subject)
        room = subject.max_seq_len + 1 - len(lead) - max(map(len, letters))
        if room < 2:
            raise TaskDataError(
                f"{self.name} needs {len(lead) + 2} tokens besides its prompt, the model takes {subject.max_seq_len}; "
                "leave the task out, or use a model with a longer context"
            )
        requests, is_cut = [], []
        for item in items:
            ids = subject.encode(item.prompt)
            shown = (*cut(ids, room, "middle"), *lead)
            requests += [Request(shown, letter) for letter in letters]
            is_cut.append(len(ids) > room)
        return Prepared(tuple(items), requests, is_cut)

    def run(self, prepared: Prepared, subject: Subject, *, rows: int = ROWS) -> Ran:
        """Every item's guess: {guess, answer, scores, difficulty, length, is_cut}."""
        found = likelihoods(subject.model, prepared.requests, rows=rows, precision=subject.precision)
        outcomes = []
        for i, (item, was_cut) in enumerate(zip(prepared.items, prepared.is_cut, strict=True)):
            scores = [f.nats for f in found[len(LETTERS) * i : len(LETTERS) * (i + 1)]]
            guess = max(range(len(scores)), key=lambda n: (scores[n], -n))
            outcomes.append(
                {
                    "guess": guess,
                    "answer": item.answer,
                    "scores": scores,
                    "difficulty": item.difficulty,
                    "length": item.length,
                    "is_cut": was_cut,
                }
            )
        return Ran(outcomes, self._remarks(sum(prepared.is_cut)))

    def _remarks(self, n_cut: int) -> tuple[str, ...]:
        said = [f"{n_cut} prompts lost their middle: the model takes no more"] if n_cut else []
        if self.context:
            said.append(f"what is known without the texts: {self.name}:context=false")
        return tuple(said)

    @property
    def measures(self) -> dict[str, Measure]:
        right = Share(is_right, lambda o: 1 / len(o["scores"]))
        groups = {
            value: Among(right, partial(_is, key, value))
            for key, values in GROUPS.items()
            for value in values
        }
        return {"accuracy": right, **groups}

    def measures_of(self, outcomes: Sequence[Outcome]) -> dict[str, Measure]:
        """Without the groups that none of the outcomes is of."""
        present = {o[key] for o in outcomes for key in GROUPS}
        return {name: m for name, m in self.measures.items() if name == "accuracy" or name in present}


def parsed(text: str) -> str | None:
    """The letter that the official code reads out of a generated text; None: it is wrong whatever is right."""
    text = text.replace("*", "")
    found = (re.search(pattern, text) for pattern in PATTERNS)
    return next((match.group(1) for match in found if match), None)


def prompt(row: Row, context: bool) -> str:
    """The official prompt, every field stripped."""
    choices = "\n".join(f"({letter}) {row.text(f'choice_{letter}').strip()}" for letter in LETTERS)
    asked = f"What is the correct answer to this question: {row.text('question').strip()}\nChoices:\n{choices}\n\n"
    if not context:
        return f"{asked}What is the single, most likely answer choice? {FORM}"
    text = row.text("context").strip()
    return (
        "Please read the following text and answer the question below.\n\n"
        f"<text>\n{text}\n</text>\n\n{asked}{FORM}"
    )


def _item(row: Row, context: bool) -> Item:
    for key, values in GROUPS.items():
        row.one_of(key, {value: i for i, value in enumerate(values)})
    for name in ("question", "context", *(f"choice_{letter}" for letter in LETTERS)):
        if not row.text(name).strip():
            raise TaskDataError(f"{row.where}: {name} is empty; every question has a text and four choices")
    answer = row.one_of("answer", NUMBERS)
    return Item(prompt(row, context), answer, row.text("difficulty"), row.text("length"), row.where)


def _is(key: str, value: str, outcome: Outcome) -> bool:
    return bool(outcome[key] == value)


def _letters(subject: Subject) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The ids of what leads to the letter, and of each letter after it, alike for all of them."""
    encode = subject.trained.tokenizer.encode
    lead = encode(LEAD)
    whole = [encode(LEAD + letter) for letter in LETTERS]
    # A tokenizer may hold "(A" in one token: then the lead ends before it.
    n = min(len(lead), *(len(ids) - 1 for ids in whole))
    while n and any(ids[:n] != lead[:n] for ids in whole):
        n -= 1
    return tuple(lead[:n]), [tuple(ids[n:]) for ids in whole]


TASKS = (
    LongBenchTask(
        name="longbench_v2",
        about="four choices on long texts, by the likelihood of the letter (the official protocol generates it)",
    ),
)
