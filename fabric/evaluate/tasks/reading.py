"""Reading comprehension by generation, in MeZO's templates (arXiv 2305.17333): SQuAD v1.1, v2 and DROP.

SQuAD by its token F1 and exact match; DROP by its own (Dua et al. 2019, arXiv 1903.00161), which pair spans and want
numbers to agree. MeZO's tables have SQuAD's F1 for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from fabric.data.labelled.spans import SPAN_SETS
from fabric.data.rows import Row, Table, read_table
from fabric.evaluate import drop
from fabric.evaluate.answers import exact, f1, normalised
from fabric.evaluate.generation import GenerationTask, Metric
from fabric.evaluate.task import Asked
from fabric.paths import real_path

FILTERS = {"answer": str.strip}
METRICS = {"f1": Metric("answer", f1), "exact": Metric("answer", exact, is_share=True)}

UNANSWERABLE = "unanswerable"


def _among(name: str, which: Callable[[Sequence[str]], bool]) -> dict[str, Metric]:
    """Both metrics over some of the questions."""
    return {f"{name}_{metric}": replace(m, among=which) for metric, m in METRICS.items()}


def _squad(name: str, asked: Asked) -> list[Row]:
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
        for q in SPAN_SETS[name].read("test", asked.folder) or []
    ]


def _squad_question(row: Row) -> str:
    title, context, question = (row.text(name) for name in ("title", "context", "question"))
    return f"Title: {title}\nContext: {context}\nQuestion: {question.strip()}"


def _answers(row: Row) -> list[str]:
    return list(dict.fromkeys(row.inner("answers").texts("text")))


def _some_answers(row: Row) -> list[str]:
    """As v2's official script has them: none of those that normalise to nothing; "" where there is no other."""
    return [a for a in _answers(row) if normalised(a)] or [""]


def _answer_or_none(text: str) -> str:
    """ "" where the text declines."""
    return "" if normalised(text) == UNANSWERABLE else text.strip()


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
        rows=partial(_squad, "squad"),
        prompt=lambda row: f"{_squad_question(row)}\nAnswer:",
        references=_answers,
        filters=FILTERS,
        metrics=METRICS,
        stops=("\n",),
    ),
    GenerationTask(
        name="squad_v2",
        about="the same, where some questions have no answer and are to be declined",
        rows=partial(_squad, "squad_v2"),
        prompt=lambda row: (
            f'{_squad_question(row)}\nIf the context does not answer it, answer "{UNANSWERABLE}".\nAnswer:'
        ),
        references=_some_answers,
        filters={"answer": _answer_or_none},
        metrics=METRICS
        | _among("has_answer", any)
        | _among("no_answer", lambda references: not any(references)),
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
