"""Minimal pairs (BLiMP, Warstadt et al. 2020, arXiv 1912.00582) of any folder, at a trial's end: task `blimp`'s scores.

Two things differ from the task: a paradigm is a file, so rows need no UID; and a tie is wrong. The task takes the first
of equal options, as lm-evaluation-harness does, and the good sentence is the first.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.data.rows import Row, Table, TaskDataError
from fabric.evaluate.likelihood import ROWS

if TYPE_CHECKING:
    from fabric.data.tokenizer import Tokenizer
    from fabric.evaluate.options import Item, OptionTask


def paradigm_accuracy(
    model: Any, tokenizer: Tokenizer, folder: Path, *, batch_size: int = ROWS, precision: Any = "fp32"
) -> dict[str, float] | None:
    """By paradigm, the share of pairs whose good sentence has the higher sum of log-probabilities.

    A sentence is scored whole, after an end-of-text token; a tie counts as wrong. None when a sentence is longer
    than the model's `max_seq_len`: an accuracy over some of the pairs would compare with nothing. BLiMP's headline
    is the mean over paradigms. Raises ValueError as `read_pairs`.
    """
    from fabric.evaluate.subject import Subject
    from fabric.trained import Trained

    task, items = read_pairs(folder)
    subject = Subject.of(Trained(Path(), model.config, tokenizer, lambda: model), precision)
    try:
        prepared = task.prepare(items, subject)
    except TaskDataError:  # of rows that were read, only a sentence that is too long
        return None
    right: dict[str, list[bool]] = {}
    for outcome in task.run(prepared, subject, rows=batch_size).outcomes:
        good, bad = outcome["scores"]
        right.setdefault(outcome["group"], []).append(good > bad)
    return {name: sum(found) / len(found) for name, found in right.items()}


def read_pairs(folder: Path) -> tuple[OptionTask, list[Item]]:
    """Task `blimp` on a folder of JSONL files (or one file) with `sentence_good` and `sentence_bad`, and its items.

    Raises ValueError naming file and line for anything else.
    """
    from fabric.evaluate.task import Asked
    from fabric.evaluate.tasks.blimp import BLIMP  # with scipy

    files = list(folder.glob("*.jsonl")) if folder.is_dir() else [folder]
    if not files or not files[0].exists():
        raise ValueError(
            f"{folder}: no .jsonl file there; evaluate.minimal_pairs wants a folder of BLiMP's files"
        )
    folder = folder.resolve()
    task = replace(BLIMP, rows=Table((folder.name,)), group=_file)
    return task, task.load(Asked(folder.parent))


def _file(row: Row) -> str:
    return Path(row.where.rpartition(":")[0]).stem
