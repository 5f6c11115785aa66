"""Families of number sequences modulo `PRIME` that can be continued: their first terms say how.

Shapes: N rows, K sequences of a row's one rule, M terms that identify a rule, X terms; `...` any shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Literal

import numpy as np

from fabric.data.corpus import SPLITS
from fabric.data.examples.base import row_keys, split_of
from fabric.data.examples.symbols import PRIME

Simple = Literal["arithmetic", "geometric", "fibonacci", "affine"]
DEALT = 10  # of the rules of a family with few: one is validation's, one the test's, the rest training's

# By Fermat, x^(P-2); 0 has none.
_INVERSE = np.array([0, *(pow(a, -1, PRIME) for a in range(1, PRIME))])


@lru_cache(maxsize=8)
def dealt_keys(n_rules: int) -> np.ndarray:
    """uint64 [n_rules]: keys of a few rules, so that every split gets its share of them and none a single one.

    Who is in which split goes by a hash of the rule's number; the key itself says the split and no more.
    """
    keys = np.arange(256, dtype=np.uint64)
    key_of = {split: keys[split_of(keys) == number][0] for number, split in enumerate(SPLITS)}
    dealt = [key_of["validation"], key_of["test"], *[key_of["train"]] * (DEALT - 2)]
    found = np.empty(n_rules, np.uint64)
    found[np.argsort(row_keys(np.arange(n_rules)[:, None]))] = np.resize(dealt, n_rules)
    return found


class Family(ABC):
    """Sequences of one kind. `n_identify`: the number of first terms that say which one it is."""

    n_identify: int

    @abstractmethod
    def draw(self, random: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """first_NKM of `k` sequences a row, of one rule from several starts, and a key of that rule, keys_N, uint64."""

    @abstractmethod
    def extended(self, terms: np.ndarray, length: int) -> np.ndarray:
        """`[..., length]`: the sequences that begin with the first `n_identify` of terms [..., X]."""

    @abstractmethod
    def _is_rule(self, terms: np.ndarray) -> np.ndarray:
        """Bool [...]: whether the first `n_identify` terms are those of a rule of this family."""

    def fits(self, terms: np.ndarray) -> np.ndarray:
        """Bool [...]: whether terms [..., X] are a sequence of this family."""
        return self._is_rule(terms) & (self.extended(terms, terms.shape[-1]) == terms).all(axis=-1)


class _Affine(Family):
    """x -> c x + b with c in [2, P), b in [0, P), but where it stands still."""

    n_identify = 3

    def draw(self, random: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        c_N1, b_N1 = self._parameters(random, n)
        first = [self._starts(random, c_N1, b_N1, k)]
        for _ in range(self.n_identify - 1):
            first.append((first[-1] * c_N1 + b_N1) % PRIME)
        return np.stack(first, axis=-1), self._keys(c_N1[:, 0], b_N1[:, 0])

    def _parameters(self, random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        return random.integers(2, PRIME, (n, 1)), random.integers(0, PRIME, (n, 1))

    def _keys(self, c_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
        return row_keys(np.stack((c_N, b_N), axis=1))

    def _starts(self, random: np.random.Generator, c_N1: np.ndarray, b_N1: np.ndarray, k: int) -> np.ndarray:
        still_N1 = b_N1 * _INVERSE[(1 - c_N1) % PRIME]
        return (still_N1 + random.integers(1, PRIME, (len(c_N1), k))) % PRIME

    def _read(self, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """c and b, from the first terms."""
        x, y, z = terms[..., 0], terms[..., 1], terms[..., 2]
        c = (z - y) * _INVERSE[(y - x) % PRIME] % PRIME
        return c, (y - c * x) % PRIME

    def extended(self, terms: np.ndarray, length: int) -> np.ndarray:
        c, b = self._read(terms)
        found = [terms[..., 0]]
        for _ in range(length - 1):
            found.append((found[-1] * c + b) % PRIME)
        return np.stack(found, axis=-1)

    def _is_rule(self, terms: np.ndarray) -> np.ndarray:
        # c is 0 where the first two are equal: it stands still, or has no inverse to be read by.
        found: np.ndarray = self._read(terms)[0] >= 2
        return found


class _Arithmetic(_Affine):
    """x -> x + d with d in [1, P)."""

    n_identify = 2

    def _parameters(self, random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((n, 1), np.int64), random.integers(1, PRIME, (n, 1))

    def _keys(self, c_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
        return dealt_keys(PRIME)[b_N]

    def _starts(self, random: np.random.Generator, c_N1: np.ndarray, b_N1: np.ndarray, k: int) -> np.ndarray:
        return random.integers(0, PRIME, (len(c_N1), k))

    def _read(self, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ones_like(terms[..., 0]), (terms[..., 1] - terms[..., 0]) % PRIME

    def _is_rule(self, terms: np.ndarray) -> np.ndarray:
        return self._read(terms)[1] > 0


class _Geometric(_Affine):
    """x -> r x with r in [2, P), from 1 to P - 1."""

    n_identify = 2

    def _parameters(self, random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        return random.integers(2, PRIME, (n, 1)), np.zeros((n, 1), np.int64)

    def _keys(self, c_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
        return dealt_keys(PRIME)[c_N]

    def _read(self, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return terms[..., 1] * _INVERSE[terms[..., 0]] % PRIME, np.zeros_like(terms[..., 0])


class _Fibonacci(Family):
    """Each term the sum of the last two, which are not both 0.

    There is one rule, so what is held out is a cycle of it: whatever two terms stand next to each other in one split's
    sequences do so in no other split's.
    """

    n_identify = 2

    def draw(self, random: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        states_CS2 = _fibonacci_cycles()
        n_cycles, n_states, _ = states_CS2.shape
        cycle_N1, state_NK = random.integers(0, n_cycles, (n, 1)), random.integers(0, n_states, (n, k))
        return states_CS2[cycle_N1, state_NK], dealt_keys(n_cycles)[cycle_N1[:, 0]]

    def extended(self, terms: np.ndarray, length: int) -> np.ndarray:
        found = [terms[..., 0], terms[..., 1]]
        while len(found) < length:
            found.append((found[-1] + found[-2]) % PRIME)
        return np.stack(found[:length], axis=-1)

    def _is_rule(self, terms: np.ndarray) -> np.ndarray:
        return (terms[..., 0] != 0) | (terms[..., 1] != 0)


@lru_cache(maxsize=1)
def _fibonacci_cycles() -> np.ndarray:
    """[cycle, state, 2]: every pair (x, y) but (0, 0), each cycle of (x, y) -> (y, x + y) in order.

    All cycles have one length: modulo 97, t^2 - t - 1 is irreducible, and the step is a product with its root.
    """
    left, cycles = {(x, y) for x in range(PRIME) for y in range(PRIME)} - {(0, 0)}, []
    while left:
        x, y = min(left)
        cycle = []
        while (x, y) in left:
            left.remove((x, y))
            cycle.append((x, y))
            x, y = y, (x + y) % PRIME
        cycles.append(cycle)
    return np.array(cycles)


class Periodic(Family):
    """`period` random numbers, over and over; starts are places in them, and rotations are one rule."""

    def __init__(self, period: int) -> None:
        self.n_identify = period

    def draw(self, random: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        p = self.n_identify
        pattern_NP = random.integers(0, PRIME, (n, p))
        places_NKP = (random.integers(0, p, (n, k, 1)) + np.arange(p)) % p
        rotated = np.stack([row_keys(np.roll(pattern_NP, i, axis=1)) for i in range(p)])
        return np.take_along_axis(pattern_NP[:, None], places_NKP, axis=2), rotated.min(axis=0)

    def extended(self, terms: np.ndarray, length: int) -> np.ndarray:
        return terms[..., np.arange(length) % self.n_identify]

    def _is_rule(self, terms: np.ndarray) -> np.ndarray:
        return np.ones(terms.shape[:-1], bool)


class Interleaved(Family):
    """The terms of two sequences in turn. The rules of both are of one split, so each is held out."""

    def __init__(self, first: Simple, second: Simple) -> None:
        self.parts = FAMILIES[first], FAMILIES[second]
        self.n_identify = max(2 * self.parts[0].n_identify - 1, 2 * self.parts[1].n_identify)

    def draw(self, random: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        (first, keys_N), (second, others_N) = (part.draw(random, n, k) for part in self.parts)
        splits_N = split_of(keys_N)
        while len(wrong := np.flatnonzero(split_of(others_N) != splits_N)):
            second[wrong], others_N[wrong] = self.parts[1].draw(random, len(wrong), k)
        return self._woven(first, second, self.n_identify), keys_N

    def extended(self, terms: np.ndarray, length: int) -> np.ndarray:
        return self._woven(terms[..., 0::2], terms[..., 1::2], length)

    def _woven(self, first: np.ndarray, second: np.ndarray, length: int) -> np.ndarray:
        found = np.empty((*first.shape[:-1], length), np.int64)
        found[..., 0::2] = self.parts[0].extended(first, (length + 1) // 2)
        found[..., 1::2] = self.parts[1].extended(second, length // 2)
        return found

    def _is_rule(self, terms: np.ndarray) -> np.ndarray:
        return self.parts[0]._is_rule(terms[..., 0::2]) & self.parts[1]._is_rule(terms[..., 1::2])


FAMILIES: dict[Simple, Family] = {
    "arithmetic": _Arithmetic(),
    "geometric": _Geometric(),
    "fibonacci": _Fibonacci(),
    "affine": _Affine(),
}


def corrupted(random: np.random.Generator, terms_NX: np.ndarray, family: Family) -> np.ndarray:
    """The same with one term of each row replaced, so that it is no sequence of the family any more.

    Needs a term more than those that identify a rule. What is one in another way is drawn anew (a, -r a, r^2 a).
    """
    assert not len(terms_NX) or terms_NX.shape[1] > family.n_identify
    found_NX = terms_NX.copy()
    while len(still := np.flatnonzero(family.fits(found_NX))):
        found_NX[still] = terms_NX[still]
        places = random.integers(0, terms_NX.shape[1], len(still))
        found_NX[still, places] += random.integers(1, PRIME, len(still))
        found_NX[still, places] %= PRIME
    return found_NX
