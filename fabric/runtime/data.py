"""Ray Data's part of preparing a corpus: spreading blocks of documents over a session's workers.

What a block yields is decided by `fabric.data.blocks`; here is only where it runs. Ray's own text readers are
not used: they hold a whole file in memory and drop line ends, and their blocks depend on the parallelism.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray
import ray.data

from fabric.data.blocks import BlockCount, BlockWork
from fabric.data.corpus import Boundary, Source
from fabric.data.index import Block


def is_connected() -> bool:
    """Whether this process has a Ray session."""
    return bool(ray.is_initialized())


def has_free_cpu() -> bool:
    """Whether a CPU of the session is held by nobody: without one, tasks would wait for trials that wait for them."""
    return float(ray.available_resources().get("CPU", 0.0)) >= 1.0


def tokenize_with_ray(
    work: BlockWork, blocks: list[Block], n_blocks: int, progress: Callable[[float], None]
) -> list[BlockCount]:
    """Tokenise every block in a Ray Data task; the counts in block order.

    `n_blocks` is the number of Ray blocks the work is dealt into. Needs a Ray session
    whose workers see `work.folder`. Raises ValueError as `BlockWork.tokenise` does.
    """
    rows: list[dict[str, Any]] = []
    for row in _run([_pack(b) for b in blocks], lambda row: _tokenise(work, row), n_blocks):
        if row["error"]:
            raise ValueError(row["error"])
        rows.append(row)
        progress(len(rows) / len(blocks))
    return sorted((BlockCount.from_json(row["count"]) for row in rows), key=lambda count: count.number)


def place_with_ray(
    work: BlockWork, offsets: list[tuple[int, ...]], n_blocks: int, progress: Callable[[float], None]
) -> None:
    """Write every block's tokens to their place, each in a Ray Data task."""
    items = [{"number": number, "offsets": list(offset)} for number, offset in enumerate(offsets)]
    for done, _ in enumerate(_run(items, lambda row: _place(work, row), n_blocks), start=1):
        progress(done / len(items))


def _tokenise(work: BlockWork, row: dict[str, Any]) -> dict[str, Any]:
    one_thread()
    try:
        return {"count": work.tokenise(_unpack(row)).to_json(), "error": ""}
    except ValueError as wrong:  # as a value: of an exception Ray brings home only text wrapped in its own
        return {"count": "", "error": str(wrong)}


def one_thread() -> None:
    """Let the tokenizers library take the one CPU that Ray gives a task; it reads this when it starts its threads."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _place(work: BlockWork, row: dict[str, Any]) -> dict[str, Any]:
    work.place(int(row["number"]), tuple(int(o) for o in row["offsets"]))
    return {"number": row["number"]}


def _pack(block: Block) -> dict[str, Any]:
    """A block as a row of plain columns: Ray Data keeps these as Arrow, and other objects as pickles."""
    boundary, source = asdict(block.source.boundary), asdict(block.source)
    plain = {f"source_{k}": v or "" for k, v in source.items() if k != "boundary"}
    numbers = {"number": block.number, "n_documents": block.n_documents}
    return {**numbers, "pattern": boundary["pattern"] or "", "where": boundary["where"], **plain}


def _unpack(row: dict[str, Any]) -> Block:
    boundary = Boundary(row["pattern"] or None, row["where"])
    fields = {k.removeprefix("source_"): v for k, v in row.items() if k.startswith("source_")}
    source = Source(**{**fields, "split": fields["split"] or None}, boundary=boundary)
    return Block(int(row["number"]), source, int(row["n_documents"]))


def _run(
    items: list[dict[str, Any]], task: Callable[[dict[str, Any]], dict[str, Any]], n_blocks: int
) -> Iterator[dict[str, Any]]:
    """Rows of `task` over `items`, as they are done."""
    with quiet():
        dealt = ray.data.from_items(items, override_num_blocks=min(n_blocks, len(items)))
        yield from dealt.map(task).iter_rows()


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or log lines from Ray Data; the settings found are put back."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = (context.enable_progress_bars, logger.level)
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])
