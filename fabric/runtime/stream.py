"""Ray Data's part of streaming: a rank's units read and tokenised by tasks, in order, ahead of the training.

`ray.train.get_dataset_shard` belongs to one `fit()`; a worker group outlives its trials, so each trial makes the
dataset of its own units, which are dealt so that no other rank has them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import ray.data

from fabric.data.corpus import CorpusError
from fabric.data.stream import Item, StreamWork, UnitRows
from fabric.data.units import Piece
from fabric.runtime.data import one_thread, quiet

UNITS = 64  # of one dataset; the sequence has no end


def read_with_ray(work: StreamWork, items: Iterator[Item]) -> Iterator[UnitRows]:
    """The rows of each item, in order. Needs a Ray session with a CPU that no trial holds, whose workers see the
    stream's folder. Raises CorpusError for text that cannot be read.
    """
    while chunk := list(itertools.islice(items, UNITS)):
        with quiet():
            dealt = ray.data.from_items([_pack(item) for item in chunk], override_num_blocks=len(chunk))
            dealt.context.execution_options.preserve_order = True
            rows = dealt.map(partial(_rows, work))
            batches = rows.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
            for item, row in zip(chunk, _each(batches), strict=True):
                yield _unpack(work, item, row)


def _rows(work: StreamWork, row: dict[str, Any]) -> dict[str, Any]:
    one_thread()
    pieces = tuple(Piece(*piece) for piece in np.asarray(row["pieces"]).reshape(-1, 3).tolist())
    number, position, unit, taken = (int(row[name]) for name in ("number", "position", "unit", "taken"))
    item = Item(number, position, unit, taken, pieces)
    try:
        return {"number": item.number, "rows": work.rows_of(item).rows.tobytes(), "error": ""}
    except ValueError as wrong:  # as a value: of an exception Ray brings home only text wrapped in its own
        return {"number": item.number, "rows": b"", "error": str(wrong)}


def _pack(item: Item) -> dict[str, Any]:
    pieces = [value for p in item.pieces for value in (p.source, p.start, p.end)]
    numbers = {"number": item.number, "position": item.position, "unit": item.unit, "taken": item.taken}
    return {**numbers, "pieces": pieces}


def _each(batches: Any) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for i in range(len(batch["number"])):
            yield {name: column[i] for name, column in batch.items()}


def _unpack(work: StreamWork, item: Item, row: dict[str, Any]) -> UnitRows:
    if row["error"]:
        raise CorpusError(row["error"])
    assert row["number"] == item.number, "units come in the order asked for"
    return UnitRows(item, np.frombuffer(row["rows"], work.dtype).reshape(-1, work.seq_len + 1))
