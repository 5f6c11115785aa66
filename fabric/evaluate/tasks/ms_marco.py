"""MS MARCO v2.1 (Nguyen et al. 2016, arXiv 1611.09268): answers from ten passages of the web, and their order.

Answers are held to `answers` alone, not to `wellFormedAnswers`. ROUGE-L and BLEU are those of `rouge_score` and
`sacrebleu`, which tokenise otherwise than the official script (it weights recall by beta = 1.2 and has BLEU-1 to 4), so
numbers are near its own and not the same. As there, BLEU is over the questions that have an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fabric.data.disk import write_atomic
from fabric.data.rows import Row, Table, TaskDataError, read_table
from fabric.evaluate.answers import exact, normalised
from fabric.evaluate.generation import GenerationTask, Metric
from fabric.evaluate.overlap import bleu_of, check_installed, rouge_l
from fabric.evaluate.ranking import RankingTask
from fabric.evaluate.task import Asked, Outcome

NO_ANSWER = "No Answer Present."
HUB = "microsoft/ms_marco"
ROWS = Table(("ms_marco/dev.jsonl",), (HUB, "v2.1", "validation"))
TRAINING_ROWS = Table(("ms_marco/train.jsonl",), (HUB, "v2.1", "train"))
SELECTED = {"0": 0, "1": 1, "False": 0, "True": 1}


def answer_of(text: str) -> str:
    """What is answered; "" where the text says that there is no answer."""
    return "" if normalised(text) == normalised(NO_ANSWER) else text.strip()


def references_of(row: Row) -> list[str]:
    """The answers, once each; "" where there is none. Raises TaskDataError for a row without the field, or empty."""
    return list(dict.fromkeys(filter(None, map(answer_of, row.texts("answers"))))) or [""]


def passages_of(row: Row) -> list[Row]:
    """A row's passages with `passage_text` and `is_selected`, of an object of lists (the hub's) or a list of objects.

    Raises TaskDataError where there are none, or lists differ in length.
    """
    value = row["passages"]
    if not isinstance(value, Mapping):
        found = row.each("passages")
    else:
        columns = {name: row.inner("passages")[name] for name in ("passage_text", "is_selected")}
        lengths = {name: len(c) if isinstance(c, list) else None for name, c in columns.items()}
        if None in lengths.values() or len(set(lengths.values())) > 1:
            raise TaskDataError(
                f"{row.where}: passages has lists of different lengths ({lengths}); each passage has one value of both"
            )
        each = enumerate(zip(*columns.values(), strict=True))
        found = [Row(dict(zip(columns, v, strict=True)), f"{row.where} passages[{i}]") for i, v in each]
    if not found:
        raise TaskDataError(f"{row.where}: passages is empty; a query has at least one")
    return found


def _texts(row: Row) -> list[str]:
    return [passage.text("passage_text").strip() for passage in passages_of(row)]


def _selected(row: Row) -> list[int]:
    return [i for i, p in enumerate(passages_of(row)) if p.one_of("is_selected", SELECTED)]


def _prompt(row: Row) -> str:
    passages = "\n".join(f"Passage {i}: {text}" for i, text in enumerate(_texts(row), 1))
    question = row.text("query").strip()
    return f'{passages}\nQuestion: {question}\nIf no passage answers it, answer "{NO_ANSWER}"\nAnswer:'


def write_predictions(path: Path, asked: Asked, outcomes: Sequence[Outcome]) -> None:
    """The answers of outcomes of `ms_marco` as the official script reads them: one object a line, query_id and answers.

    `asked`: what the outcomes are of; its rows are read again for their queries' ids. Raises ValueError where rows and
    outcomes are not the same questions, TaskDataError for an id that is no number.
    """
    rows = read_table(ROWS, asked.folder)[: asked.limit]
    if len(rows) != len(outcomes):
        raise ValueError(
            f"{len(outcomes)} outcomes of {len(rows)} rows; name the folder and limit they were asked of"
        )
    lines = []
    for row, outcome in zip(rows, outcomes, strict=True):
        if references_of(row) != list(outcome["references"]):
            raise ValueError(
                f"{row.where}: its answers are not those of the outcome, which is of another question"
            )
        query = row["query_id"]
        if isinstance(query, bool) or not str(query).isdecimal():
            raise TaskDataError(f"{row.where}: query_id = {query!r} is no whole number")
        answer = outcome["extracted"]["answer"] or NO_ANSWER
        lines.append(json.dumps({"query_id": int(query), "answers": [answer]}, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines).encode())


TASKS = (
    GenerationTask(
        name="ms_marco",
        about="the answer to a question to a search engine, from ten passages, or that they hold none",
        rows=ROWS,
        examples=TRAINING_ROWS,
        solved=lambda row: f"{_prompt(row)} {references_of(row)[0] or NO_ANSWER}",
        prompt=_prompt,
        references=references_of,
        filters={"answer": answer_of},
        metrics={
            "rouge_l": Metric("answer", rouge_l),
            "has_answer_rouge_l": Metric("answer", rouge_l, among=any),
            "no_answer_exact": Metric("answer", exact, among=lambda references: not any(references)),
        },
        whole={"bleu": bleu_of("answer")},
        requires=check_installed,
        stops=("\n",),
    ),
    RankingTask(
        name="ms_marco_ranking",
        about="a query's passages by how likely the query is after each; queries without a right one are left out",
        rows=ROWS,
        query=lambda row: row.text("query"),
        passages=_texts,
        relevant=_selected,
        prompt=lambda passage: f"Passage: {passage}\nQuestion:",
    ),
)
