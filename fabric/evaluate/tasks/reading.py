"""Reading comprehension by generation, in MeZO's templates (arXiv 2305.17333): SQuAD v1.1 and DROP, token F1 and EM.

DROP's own F1 (Dua et al. 2019, arXiv 1903.00161) aligns spans and numbers; this is SQuAD's, as MeZO's tables have it.
"""

from __future__ import annotations

from fabric.data.labelled.spans import SPAN_SETS
from fabric.data.rows import Row, Table
from fabric.evaluate.answers import exact, f1
from fabric.evaluate.generation import GenerationTask, Metric
from fabric.evaluate.task import Asked

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


def _spans(row: Row) -> list[str]:
    return list(dict.fromkeys(row.inner("answers_spans").texts("spans")))


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
        about="the answer to a question that takes counting, sorting or adding over a paragraph",
        rows=Table(
            ("drop/validation.jsonl", "drop/validation.parquet"), hub=("ucinlp/drop", None, "validation")
        ),
        prompt=lambda row: (
            f"Passage: {row.text('passage')}\nQuestion: {row.text('question').strip()}\nAnswer:"
        ),
        references=_spans,
        filters=FILTERS,
        metrics=METRICS,
        stops=("\n",),
    ),
)
