"""Sentence questions of GLUE: templates of MeZO (arXiv 2305.17333, table 14; CoLA's: LM-BFF, arXiv 2012.15723). MRPC's,
QQP's, QNLI's and MNLI's are ours, in the form of RTE's and CB's with LM-BFF's label words. Its rows are those of
`fabric.data.labelled.texts`.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric.data.labelled.texts import TEXT_SETS
from fabric.data.rows import Row
from fabric.evaluate.options import OptionTask


def _task(name: str, words: tuple[str, ...], prompt: Callable[[Row], str], free: str = "") -> OptionTask:
    """`words`: the options, in the order of the classes; `free`: the prompt without content."""
    rows = TEXT_SETS[name]
    return OptionTask(
        name=name,
        about=rows.about,
        rows=rows.test,
        examples=rows.train,
        prompt=prompt,
        options=lambda row: words,
        answer=rows.label,
        content_free=lambda row: free,
        metrics=rows.metrics,
    )


def _mnli(row: Row) -> str:
    return f'Suppose {row.text("premise")} Can we infer that "{row.text("hypothesis")}"? Yes, Maybe, or No?\n'


TASKS = (
    _task(
        "sst2",
        (" terrible", " great"),
        lambda row: f"{row.text('sentence').strip()} It was",
        free=" It was",
    ),
    _task(
        "cola",
        (" incorrect", " correct"),
        lambda row: f"{row.text('sentence').strip()} This is",
        free=" This is",
    ),
    _task(
        "rte",
        ("Yes", "No"),
        lambda row: (
            f'{row.text("sentence1")}\nDoes this mean that "{row.text("sentence2")}" is true? Yes or No?\n'
        ),
    ),
    _task(
        "mrpc",
        ("No", "Yes"),
        lambda row: (
            f'{row.text("sentence1")}\nDoes this mean the same as "{row.text("sentence2")}"? Yes or No?\n'
        ),
    ),
    _task(
        "qqp",
        ("No", "Yes"),
        lambda row: (
            f'{row.text("question1")}\nDoes this ask the same as "{row.text("question2")}"? Yes or No?\n'
        ),
    ),
    _task(
        "qnli",
        ("Yes", "No"),
        lambda row: (
            f'{row.text("sentence")}\nDoes this answer the question "{row.text("question")}"? Yes or No?\n'
        ),
    ),
    _task("mnli", ("Yes", "Maybe", "No"), _mnli),
    _task("mnli_mismatched", ("Yes", "Maybe", "No"), _mnli),
)
