"""Texts with a class or a number: GLUE's tasks, to fine-tune a model on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from fabric.data.examples.base import NUMBER_STEP, UNASKED, Asks, Built
from fabric.data.examples.labelled import LabelledExamples, padded, split_up
from fabric.data.labelled.splits import Divided
from fabric.data.labelled.texts import TEXT_SETS, TextSet
from fabric.data.rows import file_of, read_table
from fabric.data.tokenizer import Tokenizer


class LabelledText(NamedTuple):
    """A text or two, and the target."""

    texts: tuple[str, ...]
    target: int
    where: str


class LabelledTexts(LabelledExamples):
    """A row is a text, or two with an end of text between them, and an end of text, where its class (of STS-B: its
    number) is asked.

    Of a row that is too long the longer text loses tokens at its end, until it fits. GLUE (arXiv 1804.07461).
    """

    kind: Literal["labelled_texts"]

    SETS: ClassVar[Mapping[str, Any]] = TEXT_SETS

    @property
    def about(self) -> TextSet:
        """The data set."""
        return TEXT_SETS[self.dataset]

    @property
    def asks(self) -> Asks:
        return "class" if self.about.classes else "number"

    @property
    def n_answers(self) -> int:
        return len(self.about.classes) or round(self.about.most / NUMBER_STEP) + 1

    @property
    def places(self) -> Sequence[tuple[str, ...]]:
        return self.about.train.files, self.about.test.files

    def read(self) -> Divided:
        published: dict[str, list[Any] | None] = {}
        for split, table in (("train", self.about.train), ("test", self.about.test)):
            if split == "train" and self.folder is not None and file_of(table.files, self.folder) is None:
                continue  # the only split at hand is divided
            published[split] = [self._item(row) for row in read_table(table, self.folder)]
        return split_up(published, lambda item: item.texts[0], self)

    def _item(self, row: Any) -> LabelledText:
        about = self.about
        target = about.label(row) if about.classes else round(about.number(row) / NUMBER_STEP)
        return LabelledText(about.texts(row), target, row.where)

    def name_of(self, item: LabelledText) -> str:
        return "\0".join(item.texts)

    def texts_of(self, item: LabelledText) -> Sequence[str]:
        return item.texts

    def built(self, split: str, seq_len: int, tokenizer: Tokenizer | None) -> Built:
        assert tokenizer is not None
        items, remarks = self.items(split)
        rows, n_cut = [], 0
        for item in items:
            parts = [tokenizer.encode(text.strip()) for text in item.texts]
            n = sum(map(len, parts)) + len(parts)
            n_cut += n > seq_len
            _shorten(parts, seq_len - len(parts))
            rows.append([i for part in parts for i in (*part, tokenizer.eos_id)])
        said = (f"{n_cut} of {len(items)} {split} texts were cut to {seq_len} tokens",) if n_cut else ()
        targets = [
            [*([UNASKED] * (len(row) - 1)), item.target] for row, item in zip(rows, items, strict=True)
        ]
        return Built(*padded(rows, targets, seq_len), None, remarks + said)

    def check(self, seq_len: int) -> None:
        if seq_len < 2 * len(self.about.fields):
            raise ValueError(
                f"seq_len={seq_len}: {len(self.about.fields)} texts, each with an end of text, need more"
            )


def _shorten(parts: list[list[int]], room: int) -> None:
    """Take ids from the end of the longest part until all fit, in place."""
    while (n := sum(map(len, parts))) > room:
        longest = max(parts, key=len)
        others = [len(p) for p in parts if p is not longest]
        least = max(others, default=0)
        del longest[max(len(longest) - (n - room), least if len(longest) > least else len(longest) - 1) :]
