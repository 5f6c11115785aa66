"""Exact data order: the batch at a step is a pure function of (seed, step), for any number of workers.

Position p = step · batch_size + i of an endless sequence is row `permutation(seed, epoch)(p mod n_rows)` with
epoch p // n_rows. The permutation is a keyed Feistel network over a·b >= n_rows with cycle walking (Black and
Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): a bijection that needs no table, so resuming costs
nothing.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from fabric.data.cache import TokenCache

ROUNDS = 8
RUN = 2048  # positions permuted at a time


def permute(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """The images of `positions` (each in [0, n)) under the permutation of [0, n) keyed by (seed, epoch);
    int64.

    The network works on pairs (left in [0, a), right in [0, b)) with a·b just above n, so a walk out of [0,
    n) is rare and short. n up to 2^62.
    """
    a = max(1, round(n**0.5))
    b = -(-n // a)
    keys = _round_keys(seed, epoch)
    values = _network(np.asarray(positions, np.int64).astype(np.uint64), np.uint64(a), np.uint64(b), keys)
    outside = np.flatnonzero(values >= n)
    while len(outside):
        values[outside] = _network(values[outside], np.uint64(a), np.uint64(b), keys)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64)


def _network(values: np.ndarray, a: np.uint64, b: np.uint64, keys: np.ndarray) -> np.ndarray:
    """One pass of the alternating network: each round adds a keyed function of one half to the other, which
    can be undone.
    """
    left: np.ndarray = values // b
    right: np.ndarray = values % b
    for number, key in enumerate(keys):
        if number % 2 == 0:
            left = (left + mix(right ^ key) % a) % a
        else:
            right = (right + mix(left ^ key) % b) % b
    return left * b + right


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> np.ndarray:
    digest = hashlib.blake2b(f"order:{seed}:{epoch}".encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, "<u8")


@lru_cache(maxsize=8)
def _run(n: int, seed: int, epoch: int, number: int) -> np.ndarray:
    """Images of positions RUN·number to RUN·(number + 1): many batches share numpy's cost of a call."""
    return permute(np.arange(RUN * number, min(RUN * (number + 1), n)), n, seed, epoch)


class Batches:
    """Batches of rows in an order fixed by the seed; every epoch has its own permutation.

    No row repeats within an epoch, and a batch may straddle two epochs. `shard(rank, world)` gives each rank
    a contiguous slice of the same global batches. Raises ValueError when the split has fewer rows than a
    batch.
    """

    def __init__(self, cache: TokenCache, split: str, seq_len: int, batch_size: int, seed: int) -> None:
        if seq_len < 1 or batch_size < 1:
            raise ValueError(f"seq_len {seq_len} and batch_size {batch_size} must be at least 1")
        self.cache, self.split, self.seq_len, self.batch_size, self.seed = (
            cache,
            split,
            seq_len,
            batch_size,
            seed,
        )
        self.n_rows = cache.n_rows(split, seq_len)
        self._slice = (0, batch_size)
        if self.n_rows < batch_size:
            raise ValueError(
                f"corpus smaller than one batch: split {split!r} has {cache.n_tokens(split)} tokens, "
                f"{self.n_rows} row(s) of seq_len {seq_len}, and batch_size is {batch_size}; use more text, "
                f"{'' if split == 'train' else 'a larger share for it, '}a shorter seq_len or a smaller batch"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; rows left over open the next epoch's first batch."""
        return self.n_rows // self.batch_size

    def shard(self, rank: int, world: int) -> Batches:
        """The part of every batch that one of `world` ranks reads: rows [rank·B/world, (rank + 1)·B/world).

        Raises ValueError when the batch cannot be divided evenly or the rank does not exist.
        """
        begin, end = self._slice
        if not 0 <= rank < world or (end - begin) % world:
            raise ValueError(
                f"batch of {end - begin} rows for rank {rank} of {world}: the batch size must be a multiple "
                "of the number of workers, the rank below it"
            )
        part = (end - begin) // world
        shard = Batches(self.cache, self.split, self.seq_len, self.batch_size, self.seed)
        shard._slice = (begin + rank * part, begin + (rank + 1) * part)
        return shard

    def indices(self, step: int) -> np.ndarray:
        """Row numbers of this shard's part of the batch at `step` (from 0); int64 [B / world]."""
        return self._indices(step, *self._slice)

    def _indices(self, step: int, begin: int, end: int) -> np.ndarray:
        if step < 0:
            raise ValueError(f"step {step} must be at least 0")
        first, last = step * self.batch_size + begin, step * self.batch_size + end
        parts = []
        while first < last:
            epoch, position = divmod(first, self.n_rows)
            run = _run(self.n_rows, self.seed, epoch, position // RUN)[position % RUN :][: last - first]
            parts.append(run)
            first += len(run)
        return np.concatenate(parts)

    def batch(self, step: int) -> np.ndarray:
        """Rows of this shard's part of the batch at `step`: int64 [B / world, seq_len + 1]."""
        return self.cache.rows(self.split, self.seq_len, self.indices(step))

    def data_hash(self, step: int) -> str:
        """16 hex digits of the tokens of the *whole* batch at `step`: the same on every rank and world size,
        so two runs can be shown to have read the same tokens.
        """
        rows = self.cache.rows(self.split, self.seq_len, self._indices(step, 0, self.batch_size))
        return hashlib.blake2b(rows.astype("<i8").tobytes(), digest_size=8).hexdigest()
