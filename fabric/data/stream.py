"""Batches of a stream: units read and tokenised ahead of the training, their rows taken as they are dealt.

Row i of a unit is tokens [i·T, i·T + T + 1) of its training documents, so rows do not depend on who reads them; a
unit's tail that fills no row is left out.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fabric.data.blocks import batches, tokenizer_in
from fabric.data.cache import TokenCache
from fabric.data.corpus import CorpusError, Source
from fabric.data.deal import Places, row_order, unit_at
from fabric.data.documents import digest_of
from fabric.data.held_out import HoldOut
from fabric.data.places import is_url
from fabric.data.splits import TRAIN
from fabric.data.units import Piece, pieces_of, read_piece

if TYPE_CHECKING:
    from fabric.data.config import DataConfig

WAIT = 0.2  # seconds between looks whether anybody still wants what was read ahead


@dataclass(frozen=True)
class Item:
    """A unit to read: its number among the rank's items, its position and number, and the rows taken before."""

    number: int
    position: int
    unit: int
    taken: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class UnitRows:
    """The rows of an item that are still to be taken, in reading order [n, seq_len + 1]."""

    item: Item
    rows: np.ndarray


@dataclass(frozen=True)
class StreamWork:
    """From an item to its rows. Picklable: workers find tokenizer and held-out digests in `folder`, which all see."""

    folder: str
    sources: tuple[Source, ...]
    eos_token: str
    dtype: str
    seq_len: int
    seed: int
    hold_out: HoldOut

    def rows_of(self, item: Item) -> UnitRows:
        """Read, tokenise and pack a unit. Raises CorpusError for text that cannot be read."""
        tokens = self._tokens(item)
        n_rows = max(0, (len(tokens) - 1) // self.seq_len)
        order = row_order(n_rows, self.seed, item.position)[item.taken :]
        places = order[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        return UnitRows(item, tokens[places])

    def _tokens(self, item: Item) -> np.ndarray:
        tokenizer, _ = tokenizer_in(self.folder, self.eos_token)
        known = _digests(self.folder)
        texts = (text for p in item.pieces for text in read_piece(self.sources[p.source], p))
        found = [np.empty(0, self.dtype)]
        for batch, _ in batches(texts, []):
            digests = np.array([digest_of(text.strip()) for text in batch], np.uint64)
            kept = self.hold_out.splits(digests, known) == TRAIN
            ids = tokenizer.encode_documents([t for t, keep in zip(batch, kept, strict=True) if keep])
            found += [i.astype(self.dtype) for i in ids]
        return np.concatenate(found)


@lru_cache(maxsize=2)
def _digests(folder: str) -> np.ndarray:
    found: np.ndarray = np.load(Path(folder, "held_out.npy"), allow_pickle=False)
    return found


Read = Callable[[StreamWork, Iterator[Item]], Iterator[UnitRows]]


def in_process(work: StreamWork, items: Iterator[Item]) -> Iterator[UnitRows]:
    """Read units in this process, one after the other."""
    for item in items:
        yield work.rows_of(item)


class StreamedBatches:
    """A rank's part of every batch: the next rows of its units. Steps are asked for one after the other.

    `read` is how units are read (in this process, or by Ray Data); `gathered` every rank's value of something.
    """

    def __init__(
        self,
        data: DataConfig,
        cache: TokenCache,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        gathered: Callable[[Any], list[Any]] = lambda value: [value],
        read: Read = in_process,
    ) -> None:
        self.share, self.seed, self.rank, self.world = batch_size // world, seed, rank, world
        self._gathered, self._read = gathered, read
        self._table: np.ndarray = np.load(cache.path / "units.npy", allow_pickle=False)
        self.n_units = int(self._table[-1, 0]) + 1
        self.work = _work(data, cache, seed)
        self._places = Places.first(world)
        self._ahead: _Ahead | None = None
        self._unit: UnitRows | None = None
        self._used = self._n_empty = 0
        self._last: tuple[int, np.ndarray] | None = None
        self._hash = ""
        self._taken: list[list[int]] = []

    def batch(self, step: int) -> np.ndarray:
        """The rows of this rank at `step`: int64 [B / world, seq_len + 1]; of the last step asked for, again."""
        if self._last is None or self._last[0] != step:
            parts, missing = [], self.share
            while missing:
                part = self._some(missing)
                parts.append(part)
                missing -= len(part)
            self._last = step, np.concatenate(parts).astype(np.int64)
        return self._last[1]

    def _some(self, most: int) -> np.ndarray:
        """The next rows, of one unit."""
        while self._unit is None or self._used == len(self._unit.rows):
            self._next_unit()
        unit, first = self._unit, self._used
        part = unit.rows[first : first + most]
        self._used += len(part)
        begin, end = unit.item.taken + first, unit.item.taken + self._used
        log = self._taken
        if log and log[-1][0] == unit.item.position and log[-1][3] == begin:
            log[-1][3] = end
        else:
            log.append([unit.item.position, unit.item.unit, begin, end])
        return part

    def _next_unit(self) -> None:
        if self._ahead is None:
            self._ahead = _Ahead(self._read(self.work, self._items()))
        self._unit, self._used = self._ahead.next(), 0
        is_empty = not len(self._unit.rows) and not self._unit.item.taken
        self._n_empty = self._n_empty + 1 if is_empty else 0
        if self._n_empty > self.n_units:
            raise CorpusError(
                f"no unit of the training text fills a row of {self.work.seq_len} tokens; use more text, a shorter "
                "seq_len, or a larger stream.unit_bytes"
            )

    def _items(self) -> Iterator[Item]:
        for number, position, taken in self._places.items_of(self.rank):
            unit = unit_at(position, self.n_units, self.seed)
            yield Item(number, position, unit, taken, tuple(pieces_of(self._table, unit)))

    # ---- where it is; every rank calls these alike

    def data_hash(self, step: int) -> str:
        """16 hex digits of the tokens of the whole batch at the last step asked for."""
        if self._last is not None:
            own = hashlib.blake2b(self._last[1].astype("<i8").tobytes(), digest_size=8).hexdigest()
            parts = self._gathered(own)
            whole = hashlib.blake2b("".join(parts).encode(), digest_size=8).hexdigest()
            self._hash = own if self.world == 1 else whole
        return self._hash

    def saved(self, step: int) -> dict[str, Any]:
        """The places of all ranks, for a checkpoint after `step` steps."""
        if self._unit is None:
            here = self._places.ranks[self.rank]
        else:
            here = (self._unit.item.number, self._unit.item.taken + self._used)
        ranks = tuple(tuple(place) for place in self._gathered(here))
        return {**Places(self._places.deal, ranks).to_dict(), "data_hash": self.data_hash(step - 1)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on where all ranks were; with another number of ranks what was left is dealt anew."""
        self._places = Places.from_dict(saved).for_world(self.world)
        self._hash = saved["data_hash"]

    def taken(self) -> list[list[list[int]]]:
        """The rows each rank has taken since the last call: [position, unit, first, end], in a unit's reading order."""
        found, self._taken = self._gathered(self._taken), []
        return found

    def close(self) -> None:
        """Read nothing further ahead."""
        if self._ahead is not None:
            self._ahead.close()


def _work(data: DataConfig, cache: TokenCache, seed: int) -> StreamWork:
    sources = data.corpus.streamed(cache.path.parents[1])
    known = cache.manifest["sources"]
    changed = [
        s.path
        for s, k in zip(sources, known)
        if not is_url(s.path) and Path(s.path).stat().st_size != k["bytes"]
    ]
    if len(sources) != len(known) or changed:
        what = f"{changed[0]} has another size" if changed else f"{len(sources)} files, it had {len(known)}"
        raise CorpusError(f"the corpus changed since its stream was prepared ({what}); run again")
    manifest = cache.manifest
    return StreamWork(
        str(cache.path),
        tuple(sources),
        manifest["tokenizer"]["eos_token"],
        manifest["dtype"],
        data.seq_len,
        seed,
        HoldOut(*manifest["stream"]["hold_out"]),
    )


class _Ahead:
    """Values worked out by a thread of its own, one ahead of the one that is used."""

    def __init__(self, values: Iterator[UnitRows]) -> None:
        self._queue: queue.Queue[UnitRows | BaseException] = queue.Queue(maxsize=1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(values,), daemon=True)
        self._thread.start()

    def _work(self, values: Iterator[UnitRows]) -> None:
        try:
            for value in values:
                if not self._put(value):
                    break
        except BaseException as error:
            self._put(error)
        finally:
            if hasattr(values, "close"):
                values.close()

    def _put(self, value: UnitRows | BaseException) -> bool:
        """Whether the value was taken in before nobody wanted it any more."""
        while not self._over.is_set():
            try:
                self._queue.put(value, timeout=WAIT)
                return True
            except queue.Full:
                continue
        return False

    def next(self) -> UnitRows:
        value = self._queue.get()
        if isinstance(value, BaseException):
            raise value
        return value

    def close(self) -> None:
        self._over.set()
        self._thread.join(10 * WAIT)
