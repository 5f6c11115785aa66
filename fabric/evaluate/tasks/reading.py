"""Reading comprehension by generation, in MeZO's templates (arXiv 2305.17333): SQuAD v1.1 and DROP.

SQuAD by its token F1 and exact match; DROP by its own (Dua et al. 2019, arXiv 1903.00161), which pair spans and want
numbers to agree. MeZO's tables have SQuAD's F1 for both.
"""

from __future__ import annotations

from functools import partial

from fabric.data.labelled.spans import SPAN_SETS
from fabric.data.rows import Row, Table, read_table
from fabric.evaluate import drop
from fabric.evaluate.answers import exact, f1
from fabric.evaluate.generation import GenerationTask, Metric
from fabric.evaluate.task import Asked
from fabric.paths import real_path

FILTERS = {"answer": str.strip}
METRICS = {"f1": Metric("answer", f1), "exact": Metric("answer", exact, is_share=True)}


def _squad(asked: Asked) -> list[Row]:
    """SQuAD's questions with the hub's names."""
    return [
        Row(
            {
                "title": q.title,
                "context": q.context,
                "question": q.question,
                "answers": {"text": list(q.references)},
            },
            q.where,
        )
        for q in SPAN_SETS["squad"].read("test", asked.folder) or []
    ]


def _drop(table: Table, asked: Asked) -> list[Row]:
    """The official file, the first of the table's, where it is there; else rows."""
    path = None if asked.folder is None else real_path(asked.folder / table.files[0])
    return drop.read_drop(path) if path is not None and path.is_file() else read_table(table, asked.folder)


def _drop_table(official: str, split: str) -> Table:
    """The hub's `ucinlp/drop` does not say which span is of which annotator's answer; this repository does."""
    files = f"drop/{official}", f"drop/{split}.jsonl", f"drop/{split}.parquet"
    return Table(files, hub=("EleutherAI/drop", None, split))


def _drop_prompt(row: Row) -> str:
    return f"Passage: {row.text('passage')}\nQuestion: {row.text('question').strip()}\nAnswer:"


TASKS = (
    GenerationTask(
        name="squad",
        about="the answer to a question on a paragraph of Wikipedia",
        rows=_squad,
        prompt=lambda row: (
            f"Title: {row.text('title')}\nContext: {row.text('context')}\nQuestion: {row.text('question').strip()}\n"
            "Answer:"
        ),
        references=lambda row: list(dict.fromkeys(row.inner("answers").texts("text"))),
        filters=FILTERS,
        metrics=METRICS,
        stops=("\n",),
    ),
    GenerationTask(
        name="drop",
        about="the answer to a question that takes counting, sorting or adding over a paragraph; spans with commas",
        rows=partial(_drop, _drop_table("drop_dataset_dev.json", "validation")),
        examples=partial(_drop, _drop_table("drop_dataset_train.json", "train")),
        solved=lambda row: f"{_drop_prompt(row)} {', '.join(drop.references_of(row)[0])}",
        prompt=_drop_prompt,
        references=drop.references_of,
        filters={"spans": drop.spans_of},
        metrics={"f1": Metric("spans", drop.f1), "exact": Metric("spans", drop.exact, is_share=True)},
        stops=("\n",),
    ),
)
