"""Passage questions of SuperGLUE, with the templates of MeZO (arXiv 2305.17333, table 14)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fabric.data.rows import Row, Table, TaskDataError
from fabric.evaluate.answers import f1
from fabric.evaluate.options import OptionTask

ENTAILED_OR_NEITHER = {"entailment": 0, "contradiction": 1, "neutral": 2, "0": 0, "1": 1, "2": 2}
NO_YES = {"False": 0, "True": 1, "0": 0, "1": 1}
YES_NO = {"True": 0, "False": 1, "1": 0, "0": 1}
ZERO_ONE = {"0": 0, "1": 1}


def _superglue(
    name: str, release: str, split: str, unfold: Callable[[Row], Iterable[Row]] | None = None
) -> Table:
    """A split as SuperGLUE's release has it, or in lower case."""
    hub = ("aps/super_glue", name, {"val": "validation"}.get(split, split))
    folder = name.split(".")[0]
    return Table((f"{folder}/{split}.jsonl", f"{release}/{split}.jsonl"), hub, unfold=unfold)


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


def _wsc(row: Row) -> list[Row]:
    """The release nests the two spans."""
    return [Row({**row.fields, **row.inner("target").fields}, row.where)] if "target" in row.fields else [row]


def _multirc(row: Row) -> list[Row]:
    """The release nests a passage's questions, and a question's answers."""
    if "passage" not in row.fields:
        return [row]
    passage = row.inner("passage")
    return [
        Row(
            {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": answer["label"],
                "idx": {"paragraph": row["idx"], "question": question["idx"], "answer": answer["idx"]},
            },
            answer.where,
        )
        for question in passage.each("questions")
        for answer in question.each("answers")
    ]


def _record(row: Row) -> list[Row]:
    """The release nests a passage's queries, and says by character (ends included) what its entities are."""
    if "qas" not in row.fields:
        return [row]
    passage = row.inner("passage")
    text = passage.text("text")
    entities = [_span(text, e) for e in passage.each("entities")]
    return [
        Row(
            {
                "passage": text,
                "query": query["query"],
                "entities": list(dict.fromkeys(entities)),
                "answers": list(dict.fromkeys(a["text"] for a in query.each("answers"))),
            },
            query.where,
        )
        for query in row.each("qas")
    ]


def _span(text: str, place: Row) -> str:
    start, end = place["start"], place["end"]
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start <= end < len(text):
        raise TaskDataError(f"{place.where}: characters {start!r} to {end!r} of a text of {len(text)}")
    return text[start : end + 1]


def _record_answers(row: Row) -> list[int]:
    entities = row.texts("entities")
    missing = [a for a in row.texts("answers") if a not in entities]
    if missing:
        raise TaskDataError(f"{row.where}: the answer {missing[0]!r} is none of the passage's entities")
    return [entities.index(a) for a in row.texts("answers")]


def _record_worth(row: Row) -> list[float]:
    """The official F1 (Zhang et al. 2018, arXiv 1810.12885): words that an entity shares with the answer nearest it."""
    return [f1(entity, row.texts("answers")) for entity in row.texts("entities")]


TASKS = (
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
        name="wsc",
        about="whom a pronoun means",
        rows=_superglue("wsc.fixed", "WSC", "val", _wsc),
        examples=_superglue("wsc.fixed", "WSC", "train", _wsc),
        prompt=lambda row: (
            f'{row.text("text")}\nIn the previous sentence, does the pronoun "{row.text("span2_text").lower()}" '
            f"refer to {row.text('span1_text')}? Yes or No?\n"
        ),
        options=lambda row: ("No", "Yes"),
        answer=lambda row: row.one_of("label", NO_YES),
        content_free=lambda row: "",
    ),
    OptionTask(
        name="multirc",
        about="is an answer to a question on a paragraph right",
        rows=_superglue("multirc", "MultiRC", "val", _multirc),
        examples=_superglue("multirc", "MultiRC", "train", _multirc),
        prompt=lambda row: (
            f"{row.text('paragraph')}\nQuestion: {row.text('question')}\n"
            f'I found this answer "{row.text("answer")}". Is that correct? Yes or No?\n'
        ),
        options=lambda row: ("No", "Yes"),
        answer=lambda row: row.one_of("label", NO_YES),
        content_free=lambda row: "",
        group=lambda row: f"{row['idx']['paragraph']}-{row['idx']['question']}",
        metrics=("f1", "exact", "accuracy"),
    ),
    OptionTask(
        name="record",
        about="the entity that is missing from a sentence on a passage",
        rows=_superglue("record", "ReCoRD", "val", _record),
        examples=_superglue("record", "ReCoRD", "train", _record),
        prompt=lambda row: row.text("passage").replace("@highlight\n", "- ") + "\n-",
        options=lambda row: [
            " " + row.text("query").replace("@placeholder", entity) for entity in row.texts("entities")
        ],
        answer=_record_answers,
        content_free=lambda row: "-",
        worth=_record_worth,
        metrics=("accuracy", "f1"),
    ),
)
