"""BABILong (Kuratov et al. 2024, arXiv 2406.10149), qa1 to qa5, by generation after an instruction and worked examples.

The published samples are read where they are (`babilong/qa1_1k.json` of the data folder, a list of {input, question,
target}; without a folder the hub's); else samples are composed from bAbI (`babi/en-10k/`) in the subject's own tokens.
The form of the prompt and of answers is the leaderboard's, the worked examples are our own, and so is the background
(PG19 in the paper): composed samples compare models with one another, not with published numbers. Asked like this, a
small model that was not trained on the form is expected at the level of guessing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from fabric.data.rows import Table, TaskDataError, file_of, read_table
from fabric.evaluate.babilong import (
    TOKENS_A_FACT,
    Background,
    Piece,
    background,
    chance,
    checked_target,
    compose,
    is_correct,
    questions,
)
from fabric.evaluate.babilong_prompts import TEXTS, Texts, tail
from fabric.evaluate.generation import has_ended, text_of
from fabric.evaluate.measures import Measure, Share
from fabric.evaluate.task import Asked, Ran, Task
from fabric.paths import real_path

if TYPE_CHECKING:
    from fabric.evaluate.subject import Subject

NEW_TOKENS = 20
PROMPT_ROOM = 300  # tokens of a length that are the instruction's and the question's
PUBLISHED = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "10M")


@dataclass(frozen=True)
class Item:
    """A question and what its context is made of: facts and background, or a published text."""

    question: str
    target: str
    where: str
    facts: tuple[str, ...] = ()
    background: Background | None = None
    context: str | None = None
    seed: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Items, the ids of their prompts, and of each context the number of tokens."""

    items: tuple[Item, ...]
    prompts: list[list[int]]
    n_context: list[int]


@dataclass(frozen=True, kw_only=True)
class BabilongTask(Task):
    """One of the questions. Setting: `length` of the prompt in tokens, of which 300 are kept for what is not context;
    0: facts alone."""

    KIND: ClassVar[str] = "babilong"
    SETTINGS: ClassVar[tuple[str, ...]] = ("length",)

    qa: str
    texts: Texts
    length: Annotated[int, Field(ge=0)] = 1000

    def __post_init__(self) -> None:
        if 0 < self.length <= PROMPT_ROOM:
            raise ValueError(
                f"length={self.length} leaves no context: {PROMPT_ROOM} tokens of it are the prompt's; set more, or 0 "
                "for facts alone"
            )

    @property
    def n_context(self) -> int:
        """Tokens of a context; 0: as many as its facts have."""
        return max(0, self.length - PROMPT_ROOM)

    def load(self, asked: Asked) -> list[Item]:
        """Published samples where they are, else bAbI's. Raises TaskDataError where there is neither, or damage."""
        table = self._published()
        if asked.folder is None or file_of(table.files, asked.folder) is not None:
            if asked.folder is None and size_name(self.length) not in PUBLISHED:
                raise TaskDataError(
                    f"length={self.length} is not published; the hub has {', '.join(PUBLISHED)} (k: 1000 tokens); set "
                    "one of these, or name a folder with bAbI to compose samples from"
                )
            return self._read(table, asked)
        return self._of_babi(asked, asked.folder)

    def _published(self) -> Table:
        size = size_name(self.length)
        return Table((f"babilong/{self.qa}_{size}.json",), hub=("RMT-team/babilong", size, self.qa))

    def _read(self, table: Table, asked: Asked) -> list[Item]:
        return [
            Item(
                row.text("question"),
                checked_target(row.text("target"), self.qa, row.where),
                row.where,
                context=row.text("input"),
                remarks=("published samples: their length is in GPT-2's tokens",),
            )
            for row in read_table(table, asked.folder)[: asked.limit]
        ]

    def _of_babi(self, asked: Asked, folder: Path) -> list[Item]:
        place = real_path(folder / "babi" / "en-10k")
        files = sorted(place.glob(f"{self.qa}_*_test.txt"))
        if not files:
            tried = f"{real_path(folder / self._published().files[0])}, {place / (self.qa + '_*_test.txt')}"
            raise TaskDataError(
                f"its data is not here (tried: {tried}); name the folder that holds it with --data"
            )
        found = questions(files[0], self.qa)
        most = self.n_context // TOKENS_A_FACT if self.length else None
        kept = [q for q in found if most is None or len(q.facts) <= most]
        if not kept:
            raise TaskDataError(
                f"{files[0]}: every question has more than {most} facts, length={self.length} takes no more; set "
                "length higher, or length=0"
            )
        around = background(folder) if self.length else None
        remarks = self._remarks(around, len(found) - len(kept), most)
        return [
            Item(q.question, q.target, q.where, q.facts, around, None, f"{asked.seed} {self.qa} {i}", remarks)
            for i, q in enumerate(kept[: asked.limit])
        ]

    def _remarks(self, around: Background | None, n_left_out: int, most: int | None) -> tuple[str, ...]:
        said = [] if around is None else [f"the background is {around.name}: the paper's PG19 is not here"]
        if n_left_out:
            said.append(f"{n_left_out} questions with more than {most} facts were left out")
        return tuple(said)

    def prepare(self, items: Sequence[Item], subject: Subject) -> Prepared:
        """Samples are composed in the subject's tokens. Raises TaskDataError for one that the model cannot take whole:
        a prompt that lost facts would ask for something else."""
        tokenizer = subject.trained.tokenizer
        shared = next((i.background for i in items if i.background is not None), None)
        around = [tokenizer.encode(" " + s) for s in shared.sentences] if shared else []
        contexts = [self.context(item, around, subject) for item in items]
        head = subject.encode(self.texts.head)
        prompts = []
        for item, context in zip(items, contexts, strict=True):
            ids = [
                *head,
                *(i for piece in context for i in piece.ids),
                *tokenizer.encode(tail(item.question)),
            ]
            if (over := len(ids) + NEW_TOKENS - subject.max_seq_len) > 0:
                raise TaskDataError(
                    f"{item.where}: a prompt of {len(ids)} tokens and {NEW_TOKENS} new ones, the model takes "
                    f"{subject.max_seq_len}; {self._shorter(item, over)}use a model with a longer context"
                )
            prompts.append(ids)
        return Prepared(tuple(items), prompts, [sum(len(p.ids) for p in c) for c in contexts])

    def _shorter(self, item: Item, over: int) -> str:
        """A length that has `over` tokens less, where there is one."""
        if not self.length:
            return ""
        if item.context is not None:
            return f"set length lower than {self.length}, or "
        fits = self.length - over
        return (
            f"set length={fits if fits > PROMPT_ROOM else 0}{' or less' if fits > PROMPT_ROOM else ''}, or "
        )

    def context(self, item: Item, around: Sequence[Sequence[int]], subject: Subject) -> list[Piece]:
        """An item's context in ids; `around`: the background's sentences. Raises TaskDataError for facts that are too
        long."""
        encode = subject.trained.tokenizer.encode
        if item.context is not None:
            return [Piece(tuple(encode(item.context)), False)]
        facts = [encode(" " + fact) for fact in item.facts]
        try:
            return compose(facts, around, self.n_context, random.Random(item.seed))
        except ValueError as error:
            raise TaskDataError(f"{item.where}: {error}") from None

    def run(self, prepared: Prepared, subject: Subject, *, rows: int | None = None) -> Ran:
        """Every item's answer: {generated, target, question, is_right, chance, n_context}."""
        from fabric.evaluate.decoding import ROWS, Drawing, continuations

        tokenizer = subject.trained.tokenizer
        found = continuations(
            subject.model,
            prepared.prompts,
            NEW_TOKENS,
            partial(has_ended, tokenizer, ()),
            Drawing(0.0, None, 0),
            rows=rows or ROWS,
            precision=subject.precision,
        )
        outcomes = [
            {
                "generated": (text := text_of(tokenizer, ids, ())),
                "target": item.target,
                "question": item.question,
                "is_right": is_correct(self.qa, item.target, text, item.question),
                "chance": chance(self.qa, item.target, item.question),
                "n_context": n,
            }
            for item, ids, n in zip(prepared.items, found, prepared.n_context, strict=True)
        ]
        return Ran(outcomes, prepared.items[0].remarks if prepared.items else ())

    @property
    def measures(self) -> dict[str, Measure]:
        return {"accuracy": Share(lambda o: bool(o["is_right"]), lambda o: float(o["chance"]))}


def size_name(length: int) -> str:
    """A length as the published samples are called by it: 1000 is 1k, 1000000 is 1M."""
    if length % 1000:
        return str(length)
    return f"{length // 10**6}M" if length and length % 10**6 == 0 else f"{length // 1000}k"


ABOUT = {
    "qa1": "where a person is, by one fact hidden in other text",
    "qa2": "where an item is, by two facts hidden in other text",
    "qa3": "where an item was before, by three facts hidden in other text",
    "qa4": "how two places lie, by facts hidden in other text",
    "qa5": "who gave what to whom, by facts hidden in other text",
}
TASKS = tuple(
    BabilongTask(name=f"babilong_{qa}", about=ABOUT[qa], qa=qa, texts=texts) for qa, texts in TEXTS.items()
)
