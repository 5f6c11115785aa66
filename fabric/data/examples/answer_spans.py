"""Questions whose answers are spans of a context: SQuAD (arXiv 1606.05250; v2: 1806.03822), to fine-tune a model on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fabric.data.corpus import SPLITS
from fabric.data.examples.base import BEGINS, ENDS, UNASKED, Asks, Built
from fabric.data.examples.labelled import LabelledExamples, padded, split_up
from fabric.data.labelled.spans import SPAN_SETS, Question, SpanSet
from fabric.data.labelled.splits import Divided
from fabric.data.tokenizer import Tokenizer


class AnswerSpans(LabelledExamples):
    """A row is a question, an end of text, a window on its context and an end of text; asked is where the answer begins
    and where it ends, among the window's tokens and the last end of text, which means: not here.

    Questions keep their first `question_tokens`; windows on a context that does not fit share `overlap` tokens
    (BERT's for SQuAD: arXiv 1810.04805 §4.2, its `doc_stride`). Files of one's own have SQuAD's form; `unanswerable`
    says that some of their questions have no answer (v2).
    """

    kind: Literal["answer_spans"]
    question_tokens: int = Field(default=64, ge=1)
    overlap: int = Field(default=128, ge=0)
    unanswerable: bool = False

    SETS: ClassVar[Mapping[str, Any]] = SPAN_SETS
    OWN: ClassVar[tuple[str, ...]] = ("unanswerable",)

    @property
    def about(self) -> SpanSet:
        """The data set."""
        if self.dataset is not None:
            return SPAN_SETS[self.dataset]
        assert self.files is not None
        return SpanSet("these files", "", self.files.published, None, has_impossible=self.unanswerable)

    @property
    def asks(self) -> Asks:
        return "span"

    @property
    def n_answers(self) -> int:
        return (BEGINS | ENDS) + 1

    def check(self, seq_len: int) -> None:
        least = self.question_tokens + 2 + self.overlap + 1
        if seq_len < least:
            raise ValueError(
                f"seq_len={seq_len} with question_tokens={self.question_tokens} and overlap={self.overlap}: a window "
                f"must hold more than it shares with the next; use a seq_len from {least} on, or less of the others"
            )

    @property
    def places(self) -> Sequence[tuple[str, ...]]:
        return [self.about.files.get(split, ()) for split in SPLITS]

    def read(self) -> Divided:
        published: dict[str, list[Any] | None] = {s: self.about.read(s, self.root) for s in SPLITS}
        return split_up(published, lambda question: question.title or question.context, self)

    def name_of(self, item: Question) -> str:
        return item.id

    def content_of(self, item: Question) -> str:
        return f"{item.question}\0{item.context}"

    def texts_of(self, item: Question) -> Sequence[str]:
        return item.question, item.context

    def built(self, split: str, seq_len: int, tokenizer: Tokenizer | None) -> Built:
        assert tokenizer is not None
        questions, remarks = self.items(split)
        rows: list[list[int]] = []
        targets: list[list[int]] = []
        items: list[dict[str, Any]] = []
        n_lost = 0
        for question in questions:
            asked = tokenizer.encode(question.question.strip())[: self.question_tokens]
            ids, ends = tokenizer.encode_with_ends(question.context)
            span = token_span(ends, question)
            n_before = len(rows)
            for begin, end in _windows(len(ids), seq_len - len(asked) - 2, self.overlap):
                here = span is not None and begin <= span[0] and span[1] < end
                if split == "train" and not here and span is not None:
                    continue  # the answer is in another window: what this one ought to say is a guess
                rows.append([*asked, tokenizer.eos_id, *ids[begin:end], tokenizer.eos_id])
                where = (span[0] - begin, span[1] - begin) if here and span else (end - begin,) * 2
                targets.append([UNASKED] * (len(asked) + 1) + _marked(end - begin + 1, where))
                items.append(_item(question, ends[begin:end], int(ends[begin - 1]) if begin else 0))
            n_lost += len(rows) == n_before
        said = (f"{n_lost} {split} answers are longer than a window",) if n_lost else ()
        return Built(*padded(rows, targets, seq_len), items, remarks + said)


def token_span(ends: np.ndarray, question: Question) -> tuple[int, int] | None:
    """The first and last token of the first answer; None where there is none."""
    if not question.answers:
        return None
    text, start = question.answers[0]
    first, last = np.searchsorted(ends, [start, start + len(text) - 1], side="right")
    return int(first), int(last)


def _windows(n: int, length: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Begin and end of windows that hold all of `n` tokens."""
    begin = 0
    while True:
        end = min(n, begin + length)
        yield begin, end
        if end == n:
            return
        begin = end - overlap


def _marked(n: int, where: tuple[int, int]) -> list[int]:
    marks = [0] * n
    marks[where[0]] |= BEGINS
    marks[where[1]] |= ENDS
    return marks


def _item(question: Question, ends: np.ndarray, begin: int) -> dict[str, Any]:
    """What a window's answer is judged by: its text, how many characters of it have ended with each token."""
    last = int(ends[-1]) if len(ends) else begin
    return {
        "owner": question.id,
        "references": question.references,
        "text": question.context[begin:last],
        "ends": (ends - begin).tolist(),
    }
