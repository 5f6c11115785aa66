"""Sentence questions of GLUE: templates of MeZO (arXiv 2305.17333, table 14; CoLA's: LM-BFF, arXiv 2012.15723). MRPC's,
QQP's, QNLI's and MNLI's are ours, in the form of RTE's and CB's with LM-BFF's label words.

CoLA's own release cuts the 1,043 sentences of GLUE's validation split in two files;
`cola/in_domain_dev.tsv` has 527 of them."""

from __future__ import annotations

from collections.abc import Mapping

from fabric.data.rows import Table
from fabric.evaluate.options import OptionTask

COLA = ("source", "label", "mark", "sentence")
ENTAILED = {"entailment": 0, "not_entailment": 1, "0": 0, "1": 1}
MNLI_LABELS = {"entailment": 0, "neutral": 1, "contradiction": 2, "0": 0, "1": 1, "2": 2}
ZERO_ONE = {"0": 0, "1": 1}
MRPC = {"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"}
QQP = {"is_duplicate": "label"}
MNLI = {"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"}


def _glue(name: str, release: str, split: str, rename: Mapping[str, str] | None = None) -> Table:
    """A split as GLUE's release has it, or in lower case."""
    hub = ("nyu-mll/glue", name, {"dev": "validation"}.get(split, split))
    return Table((f"{name}/{split}.tsv", f"{release}/{split}.tsv"), hub, rename=rename or {})


def _mnli(name: str, split: str) -> OptionTask:
    return OptionTask(
        name=name,
        about="is a hypothesis entailed, contradicted or neither",
        rows=Table(
            (f"mnli/dev_{split}.tsv", f"MNLI/dev_{split}.tsv"),
            ("nyu-mll/glue", "mnli", f"validation_{split}"),
            rename=MNLI,
        ),
        examples=_glue("mnli", "MNLI", "train", MNLI),
        prompt=lambda row: (
            f'Suppose {row.text("premise")} Can we infer that "{row.text("hypothesis")}"? Yes, Maybe, or No?\n'
        ),
        options=lambda row: ("Yes", "Maybe", "No"),
        answer=lambda row: row.one_of("label", MNLI_LABELS),
        content_free=lambda row: "",
    )


TASKS = (
    OptionTask(
        name="sst2",
        about="is a sentence of a film review good or bad",
        rows=_glue("sst2", "SST-2", "dev"),
        examples=_glue("sst2", "SST-2", "train"),
        prompt=lambda row: f"{row.text('sentence').strip()} It was",
        options=lambda row: (" terrible", " great"),
        answer=lambda row: row.one_of("label", ZERO_ONE),
        content_free=lambda row: " It was",
    ),
    OptionTask(
        name="cola",
        about="is a sentence grammatical",
        rows=Table(("cola/in_domain_dev.tsv", "CoLA/dev.tsv"), ("nyu-mll/glue", "cola", "validation"), COLA),
        examples=Table(
            ("cola/in_domain_train.tsv", "CoLA/train.tsv"), ("nyu-mll/glue", "cola", "train"), COLA
        ),
        prompt=lambda row: f"{row.text('sentence').strip()} This is",
        options=lambda row: (" incorrect", " correct"),
        answer=lambda row: row.one_of("label", ZERO_ONE),
        content_free=lambda row: " This is",
        metrics=("matthews", "accuracy"),
    ),
    OptionTask(
        name="rte",
        about="does a text entail a hypothesis",
        rows=_glue("rte", "RTE", "dev"),
        examples=_glue("rte", "RTE", "train"),
        prompt=lambda row: (
            f'{row.text("sentence1")}\nDoes this mean that "{row.text("sentence2")}" is true? Yes or No?\n'
        ),
        options=lambda row: ("Yes", "No"),
        answer=lambda row: row.one_of("label", ENTAILED),
        content_free=lambda row: "",
    ),
    OptionTask(
        name="mrpc",
        about="do two sentences say the same",
        rows=Table(("mrpc/msr_paraphrase_test.txt",), ("nyu-mll/glue", "mrpc", "test"), rename=MRPC),
        examples=Table(("mrpc/msr_paraphrase_train.txt",), ("nyu-mll/glue", "mrpc", "train"), rename=MRPC),
        prompt=lambda row: (
            f'{row.text("sentence1")}\nDoes this mean the same as "{row.text("sentence2")}"? Yes or No?\n'
        ),
        options=lambda row: ("No", "Yes"),
        answer=lambda row: row.one_of("label", ZERO_ONE),
        content_free=lambda row: "",
        metrics=("accuracy", "f1"),
    ),
    OptionTask(
        name="qqp",
        about="do two questions ask the same",
        rows=_glue("qqp", "QQP", "dev", QQP),
        examples=_glue("qqp", "QQP", "train", QQP),
        prompt=lambda row: (
            f'{row.text("question1")}\nDoes this ask the same as "{row.text("question2")}"? Yes or No?\n'
        ),
        options=lambda row: ("No", "Yes"),
        answer=lambda row: row.one_of("label", ZERO_ONE),
        content_free=lambda row: "",
        metrics=("f1", "accuracy"),
    ),
    OptionTask(
        name="qnli",
        about="does a sentence answer a question",
        rows=_glue("qnli", "QNLI", "dev"),
        examples=_glue("qnli", "QNLI", "train"),
        prompt=lambda row: (
            f'{row.text("sentence")}\nDoes this answer the question "{row.text("question")}"? Yes or No?\n'
        ),
        options=lambda row: ("Yes", "No"),
        answer=lambda row: row.one_of("label", ENTAILED),
        content_free=lambda row: "",
    ),
    _mnli("mnli", "matched"),
    _mnli("mnli_mismatched", "mismatched"),
)
