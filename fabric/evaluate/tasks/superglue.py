"""Sentence and passage questions of GLUE and SuperGLUE, with the templates of MeZO (arXiv 2305.17333, table 14; CoLA's:
LM-BFF, arXiv 2012.15723); MRPC's is ours, in the form of RTE's.

CoLA's own release cuts the 1,043 sentences of GLUE's validation split in two files;
`cola/in_domain_dev.tsv` has 527 of them."""

from __future__ import annotations

from fabric.evaluate.options import OptionTask
from fabric.evaluate.rows import Row, Table

COLA = ("source", "label", "mark", "sentence")
ENTAILED = {"entailment": 0, "not_entailment": 1, "0": 0, "1": 1}
ENTAILED_OR_NEITHER = {"entailment": 0, "contradiction": 1, "neutral": 2, "0": 0, "1": 1, "2": 2}
NO_YES = {"False": 0, "True": 1, "0": 0, "1": 1}
YES_NO = {"True": 0, "False": 1, "1": 0, "0": 1}
ZERO_ONE = {"0": 0, "1": 1}
MRPC = {"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"}


def _glue(name: str, release: str, split: str) -> Table:
    """A split as GLUE's release has it, or in lower case."""
    hub = ("nyu-mll/glue", name, {"dev": "validation"}.get(split, split))
    return Table((f"{name}/{split}.tsv", f"{release}/{split}.tsv"), hub)


def _superglue(name: str, release: str, split: str) -> Table:
    """A split as SuperGLUE's release has it, or in lower case."""
    hub = ("aps/super_glue", name, {"val": "validation"}.get(split, split))
    return Table((f"{name}/{split}.jsonl", f"{release}/{split}.jsonl"), hub)


def _asked(row: Row) -> str:
    """A question with its first letter a capital and a question mark at its end."""
    question = row.text("question")
    question += "" if question.endswith("?") else "?"
    return question[:1].upper() + question[1:]


def _copa_prompt(row: Row) -> str:
    premise = row.text("premise").rstrip()
    premise = premise[:-1] if premise.endswith(".") else premise
    return premise + _copa_link(row)


def _copa_link(row: Row) -> str:
    return (" because ", " so ")[row.one_of("question", {"cause": 0, "effect": 1})]


def _copa_choice(row: Row, name: str) -> str:
    choice = row.text(name)
    return choice if choice.split(" ", 1)[0] == "I" else choice[:1].lower() + choice[1:]


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
        name="cb",
        about="is a clause entailed, contradicted or neither",
        rows=_superglue("cb", "CB", "val"),
        examples=_superglue("cb", "CB", "train"),
        prompt=lambda row: (
            f'Suppose {row.text("premise")} Can we infer that "{row.text("hypothesis")}"? Yes, No, or Maybe?\n'
        ),
        options=lambda row: ("Yes", "No", "Maybe"),
        answer=lambda row: row.one_of("label", ENTAILED_OR_NEITHER),
        content_free=lambda row: "",
        metrics=("accuracy", "f1_macro"),
    ),
    OptionTask(
        name="boolq",
        about="yes or no, by a passage",
        rows=_superglue("boolq", "BoolQ", "val"),
        examples=_superglue("boolq", "BoolQ", "train"),
        prompt=lambda row: f"{row.text('passage')} {_asked(row)}\n",
        options=lambda row: ("Yes", "No"),
        answer=lambda row: row.one_of("label", YES_NO),
        content_free=lambda row: "",
    ),
    OptionTask(
        name="wic",
        about="does a word mean the same in two sentences",
        rows=_superglue("wic", "WiC", "val"),
        examples=_superglue("wic", "WiC", "train"),
        prompt=lambda row: (
            f'Does the word "{row.text("word")}" have the same meaning in these two sentences? Yes, No?\n'
            f"{row.text('sentence1')}\n{row.text('sentence2')}\n"
        ),
        options=lambda row: ("No", "Yes"),
        answer=lambda row: row.one_of("label", NO_YES),
        content_free=lambda row: "",
    ),
    OptionTask(
        name="copa",
        about="the likelier cause or effect",
        rows=_superglue("copa", "COPA", "val"),
        examples=_superglue("copa", "COPA", "train"),
        prompt=_copa_prompt,
        options=lambda row: (_copa_choice(row, "choice1"), _copa_choice(row, "choice2")),
        answer=lambda row: row.one_of("label", ZERO_ONE),
        content_free=_copa_link,
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
)
