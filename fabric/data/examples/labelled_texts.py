"""Texts with a class or a number: GLUE's tasks, to fine-tune a model on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from fabric.data.examples.base import NUMBER_STEP, UNASKED, Asks, Built
from fabric.data.examples.labelled import LabelledExamples, padded, split_up
from fabric.data.labelled.splits import Divided
from fabric.data.labelled.texts import TEXT_SETS, TextSet
from fabric.data.rows import Row, Table, file_of, read_table
from fabric.data.tokenizer import Tokenizer

FORMS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
LEAST_MOST = 1000 * NUMBER_STEP


class LabelledText(NamedTuple):
    """A text or two without white space around them, the target, and whether a number had to be rounded for it."""

    texts: tuple[str, ...]
    target: int
    where: str
    is_rounded: bool


def _as_list(fields: Any) -> Any:
    """One field needs no brackets."""
    return (fields,) if isinstance(fields, str) else fields


def _as_text(classes: Any) -> Any:
    """YAML reads `[0, 1]` as numbers, and a CSV file's labels are text."""
    if not isinstance(classes, list | tuple):
        return classes
    if any(isinstance(c, bool) for c in classes):
        raise ValueError(
            "YAML reads yes, no, on, off, true and false as truth values; write such names in quotes"
        )
    return tuple(str(c) if isinstance(c, int) else c for c in classes)


class LabelledTexts(LabelledExamples):
    """A row is a text, or two with an end of text between them, and an end of text, where its class (of STS-B: its
    number) is asked.

    Of a row that is too long the longer text loses tokens at its end, until it fits. GLUE (arXiv 1804.07461).

    Of files of one's own (CSV; TSV without quotes, as GLUE's; JSON, JSON Lines, Parquet) `fields` names the text or two
    that are read, `label` the class, one of `classes`; without `classes` the label is a number from 0 to `most`, of
    which four decimals count.
    """

    REVISION: ClassVar[int] = 2  # white space around texts tells no item from another

    kind: Literal["labelled_texts"]
    fields: Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1, max_length=2)] = (
        "text",
    )
    label: str = "label"
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_as_text)] = None
    most: float | None = Field(default=None, gt=0, le=1e5)

    SETS: ClassVar[Mapping[str, Any]] = TEXT_SETS
    OWN: ClassVar[tuple[str, ...]] = ("fields", "label", "classes", "most")

    def check_own(self) -> None:
        assert self.files is not None
        for (path,) in self.files.published.values():
            if Path(path).suffix.lower() not in FORMS:
                raise ValueError(f"files: {path}: unknown form; allowed: {', '.join(FORMS)}")
        if len({*self.fields, self.label}) <= len(self.fields):
            raise ValueError(f"fields {list(self.fields)} and label {self.label!r} must all be different")
        if (self.classes is None) == (self.most is None):
            raise ValueError(
                "say what the label of your files is: classes: [name, …], or most: the largest number it can be"
                + (", not both" if self.classes else "")
            )
        if self.classes is not None and not len(set(self.classes)) == len(self.classes) > 1:
            raise ValueError(f"classes: {list(self.classes)} must be two different ones or more")
        if self.most is not None and self.most < LEAST_MOST:
            raise ValueError(
                f"most: {self.most:g} is too little, numbers are kept to four decimals; write labels in a unit in "
                f"which the largest is {LEAST_MOST:g} or more"
            )

    @property
    def about(self) -> TextSet:
        """The data set."""
        if self.dataset is not None:
            return TEXT_SETS[self.dataset]
        assert self.files is not None
        tables = {split: Table(paths) for split, paths in self.files.published.items()}
        classes = self.classes or ()
        return TextSet(
            "these files",
            "",
            tables["test"],
            tables.get("train", Table(())),
            self.fields,
            ("accuracy",) if classes else ("pearson", "spearman"),
            classes,
            {name: number for number, name in enumerate(classes)},
            most=self.most or 0.0,
            label_field=self.label,
            validation=tables.get("validation"),
        )

    @property
    def asks(self) -> Asks:
        return "class" if self.about.classes else "number"

    @property
    def n_answers(self) -> int:
        return len(self.about.classes) or round(self.about.most / NUMBER_STEP) + 1

    @property
    def places(self) -> Sequence[tuple[str, ...]]:
        about = self.about
        validation = about.validation.files if about.validation else ()
        return about.train.files, validation, about.test.files

    def read(self) -> Divided:
        about = self.about
        published: dict[str, list[Any] | None] = {}
        for split, table in (("train", about.train), ("validation", about.validation), ("test", about.test)):
            if table is None:
                continue
            if split == "train" and self.root is not None and file_of(table.files, self.root) is None:
                continue  # the only split at hand is divided
            published[split] = [_item(row, about) for row in read_table(table, self.root)]
        return split_up(published, lambda item: item.texts[0], self)

    def name_of(self, item: LabelledText) -> str:
        return "\0".join(item.texts)

    def content_of(self, item: LabelledText) -> str:
        return "\0".join(sorted(item.texts))  # of a pair the other way round, too

    def texts_of(self, item: LabelledText) -> Sequence[str]:
        return item.texts

    def built(self, split: str, seq_len: int, tokenizer: Tokenizer | None) -> Built:
        assert tokenizer is not None
        items, remarks = self.items(split)
        rows, n_cut = [], 0
        for item in items:
            parts = [tokenizer.encode(text) for text in item.texts]
            n = sum(map(len, parts)) + len(parts)
            n_cut += n > seq_len
            _shorten(parts, seq_len - len(parts))
            rows.append([i for part in parts for i in (*part, tokenizer.eos_id)])
        n_rounded = sum(item.is_rounded for item in items)
        counts = {
            f"texts were cut to {seq_len} tokens": n_cut,
            "numbers were rounded to four decimals": n_rounded,
        }
        said = tuple(f"{n} of {len(items)} {split} {what}" for what, n in counts.items() if n)
        targets = [
            [*([UNASKED] * (len(row) - 1)), item.target] for row, item in zip(rows, items, strict=True)
        ]
        return Built(*padded(rows, targets, seq_len), None, remarks + said)

    def check(self, seq_len: int) -> None:
        if seq_len < 2 * len(self.about.fields):
            raise ValueError(
                f"seq_len={seq_len}: {len(self.about.fields)} texts, each with an end of text, need more"
            )


def _item(row: Row, about: TextSet) -> LabelledText:
    texts = tuple(text.strip() for text in about.texts(row))
    if about.classes:
        return LabelledText(texts, about.label(row), row.where, False)
    number = about.number(row)
    target = round(number / NUMBER_STEP)
    return LabelledText(texts, target, row.where, abs(number - target * NUMBER_STEP) > NUMBER_STEP / 1000)


def _shorten(parts: list[list[int]], room: int) -> None:
    """Take ids from the end of the longest part until all fit, in place."""
    while (n := sum(map(len, parts))) > room:
        longest = max(parts, key=len)
        others = [len(p) for p in parts if p is not longest]
        least = max(others, default=0)
        del longest[max(len(longest) - (n - room), least if len(longest) > least else len(longest) - 1) :]
