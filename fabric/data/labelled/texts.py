"""Texts, or pairs of them, that have a class or a number: the eight tasks of GLUE (arXiv 1804.07461).

GLUE's test labels are not public: its validation splits are the test here. CoLA's own release cuts the 1,043 sentences
of its validation split in two files; `cola/in_domain_dev.tsv` has 527 of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fabric.data.rows import Row, Table, TaskDataError

COLA_COLUMNS = ("source", "label", "mark", "sentence")
ENTAILED = {"entailment": 0, "not_entailment": 1, "0": 0, "1": 1}
MNLI_LABELS = {"entailment": 0, "neutral": 1, "contradiction": 2, "0": 0, "1": 1, "2": 2}
ZERO_ONE = {"0": 0, "1": 1}
MRPC = {"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"}
QQP = {"is_duplicate": "label"}
MNLI = {"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"}
STSB = {"score": "label"}


@dataclass(frozen=True)
class TextSet:
    """A data set of texts: its rows, the fields of one that are read, and what is asked of them.

    `classes`: their names in the order of their numbers; without any, a number from `least` to `most` is asked for.
    `labels`: a class as rows have it, with its number; `label_field`: where it stands. `metrics`: the official ones,
    the headline first. `validation`: where it is published and is not what the test is.
    """

    name: str
    about: str
    test: Table
    train: Table
    fields: tuple[str, ...]
    metrics: tuple[str, ...]
    classes: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    least: float = 0.0
    most: float = 0.0
    label_field: str = "label"
    validation: Table | None = None

    def texts(self, row: Row) -> tuple[str, ...]:
        """What is read of a row. Raises TaskDataError for fields that are missing or no text."""
        return tuple(row.text(name) for name in self.fields)

    def label(self, row: Row) -> int:
        """The number of a row's class. Raises TaskDataError for a label outside the set."""
        return row.one_of(self.label_field, self.labels)

    def number(self, row: Row) -> float:
        """A row's number. Raises TaskDataError for what is none, or out of range."""
        name = self.label_field
        given = row[name]
        try:
            value = float(given)
        except (TypeError, ValueError):
            raise TaskDataError(f"{row.where}: {name} = {given!r} is no number") from None
        if not self.least <= value <= self.most:
            raise TaskDataError(
                f"{row.where}: {name} = {given!r} is not between {self.least:g} and {self.most:g}"
            )
        return value


def _glue(
    name: str,
    release: str,
    split: str,
    rename: Mapping[str, str] | None = None,
    columns: tuple[str, ...] | None = None,
) -> Table:
    """A split as GLUE's release has it, or in lower case."""
    hub = ("nyu-mll/glue", name, {"dev": "validation"}.get(split, split))
    return Table((f"{name}/{split}.tsv", f"{release}/{split}.tsv"), hub, columns, rename or {})


def _mnli(name: str, split: str) -> TextSet:
    return TextSet(
        name,
        "is a hypothesis entailed, contradicted or neither",
        Table(
            (f"mnli/dev_{split}.tsv", f"MNLI/dev_{split}.tsv"),
            ("nyu-mll/glue", "mnli", f"validation_{split}"),
            rename=MNLI,
        ),
        _glue("mnli", "MNLI", "train", MNLI),
        ("premise", "hypothesis"),
        ("accuracy",),
        ("entailment", "neutral", "contradiction"),
        MNLI_LABELS,
    )


_ALL = (
    TextSet(
        "sst2",
        "is a sentence of a film review good or bad",
        _glue("sst2", "SST-2", "dev"),
        _glue("sst2", "SST-2", "train"),
        ("sentence",),
        ("accuracy",),
        ("negative", "positive"),
        ZERO_ONE,
    ),
    TextSet(
        "cola",
        "is a sentence grammatical",
        Table(
            ("cola/in_domain_dev.tsv", "CoLA/dev.tsv"), ("nyu-mll/glue", "cola", "validation"), COLA_COLUMNS
        ),
        Table(
            ("cola/in_domain_train.tsv", "CoLA/train.tsv"), ("nyu-mll/glue", "cola", "train"), COLA_COLUMNS
        ),
        ("sentence",),
        ("matthews", "accuracy"),
        ("unacceptable", "acceptable"),
        ZERO_ONE,
    ),
    TextSet(
        "rte",
        "does a text entail a hypothesis",
        _glue("rte", "RTE", "dev"),
        _glue("rte", "RTE", "train"),
        ("sentence1", "sentence2"),
        ("accuracy",),
        ("entailment", "not_entailment"),
        ENTAILED,
    ),
    TextSet(
        "mrpc",
        "do two sentences say the same",
        Table(("mrpc/msr_paraphrase_test.txt",), ("nyu-mll/glue", "mrpc", "test"), rename=MRPC),
        Table(("mrpc/msr_paraphrase_train.txt",), ("nyu-mll/glue", "mrpc", "train"), rename=MRPC),
        ("sentence1", "sentence2"),
        ("accuracy", "f1"),
        ("different", "same"),
        ZERO_ONE,
    ),
    TextSet(
        "qqp",
        "do two questions ask the same",
        _glue("qqp", "QQP", "dev", QQP),
        _glue("qqp", "QQP", "train", QQP),
        ("question1", "question2"),
        ("f1", "accuracy"),
        ("different", "same"),
        ZERO_ONE,
    ),
    TextSet(
        "qnli",
        "does a sentence answer a question",
        _glue("qnli", "QNLI", "dev"),
        _glue("qnli", "QNLI", "train"),
        ("question", "sentence"),
        ("accuracy",),
        ("entailment", "not_entailment"),
        ENTAILED,
    ),
    _mnli("mnli", "matched"),
    _mnli("mnli_mismatched", "mismatched"),
    TextSet(
        "stsb",
        "how alike two sentences are, from 0 to 5",
        _glue("stsb", "STS-B", "dev", STSB),
        _glue("stsb", "STS-B", "train", STSB),
        ("sentence1", "sentence2"),
        ("pearson", "spearman"),
        most=5.0,
    ),
)
TEXT_SETS = {s.name: s for s in _ALL}
