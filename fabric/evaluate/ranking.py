"""Ranking: a query's passages in the order of how likely the query is after each (Ponte and Croft 1998, as language
models do it: Sachan et al. 2022, arXiv 2204.07496), scored by the rank of the first relevant one.

A tie goes against the model: passages of the same score stand before the relevant one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, ClassVar

from fabric.data.rows import Row, Table, TaskDataError, read_table
from fabric.evaluate.likelihood import ROWS, Request, likelihoods
from fabric.evaluate.measures import Mean, Measure
from fabric.evaluate.options import fitted_of, request_of
from fabric.evaluate.task import Asked, Outcome, Ran, Task

if TYPE_CHECKING:
    from fabric.evaluate.subject import Subject


@dataclass(frozen=True, kw_only=True)
class RankingTask(Task):
    """A task in a few lines: where its rows are, a row's query, its passages, and which of these are relevant.

    `prompt`: what stands before the query, of a passage. Rows of which no passage is relevant are left out, for no
    order of theirs is right. `cutoff`: a first relevant passage of a later rank counts nothing.
    """

    KIND: ClassVar[str] = "ranking"

    rows: Table
    query: Callable[[Row], str]
    passages: Callable[[Row], Sequence[str]]
    relevant: Callable[[Row], Sequence[int]]
    prompt: Callable[[str], str]
    cutoff: int = 10

    def load(self, asked: Asked) -> list[Item]:
        """Raises TaskDataError where data is missing or not as it should be, or no row has a relevant passage."""
        rows = read_table(self.rows, asked.folder)
        items = [item for row in rows if (item := self._item(row)).relevant]
        if not items:
            raise TaskDataError(
                f"{rows[0].where} and all after it have no relevant passage; mark one in a row"
            )
        return items[: asked.limit]

    def _item(self, row: Row) -> Item:
        passages, relevant = tuple(self.passages(row)), tuple(self.relevant(row))
        if not all(0 <= r < len(passages) for r in relevant):
            raise TaskDataError(f"{row.where}: {relevant} are not all of {len(passages)} passages")
        query = self.query(row).strip()
        if not query:
            raise TaskDataError(f"{row.where}: the query is empty; give it words, or leave the row out")
        return Item(query, tuple(map(self.prompt, passages)), relevant, row.where)

    def prepare(self, items: Sequence[Item], subject: Subject) -> Prepared:
        """A passage that is too long loses its beginning; a query that is raises TaskDataError."""
        places = {(p, " " + i.query): i.where for i in items for p in i.prompts}
        whole = {key: request_of(subject, *key, where) for key, where in places.items()}
        texts = {key: fitted_of(r, subject, places[key]) for key, r in whole.items()}
        n_cut = sum(len(r.context) < len(whole[key].context) for key, r in texts.items())
        return Prepared(tuple(items), texts, n_cut)

    def run(self, prepared: Prepared, subject: Subject, *, rows: int = ROWS) -> Ran:
        """Every query's {scores, relevant, rank}: its log-likelihood after each passage, the first relevant's rank."""
        requests = list(prepared.texts.values())
        found = likelihoods(subject.model, requests, rows=rows, precision=subject.precision)
        nats = {key: likelihood.nats for key, likelihood in zip(prepared.texts, found, strict=True)}
        outcomes = []
        for item in prepared.items:
            scores = [nats[prompt, " " + item.query] for prompt in item.prompts]
            rank = rank_of(scores, item.relevant)
            outcomes.append({"scores": scores, "relevant": list(item.relevant), "rank": rank})
        n = prepared.n_cut
        return Ran(outcomes, (f"{n} passages lost their beginning: the model takes no more",) if n else ())

    @property
    def measures(self) -> dict[str, Measure]:
        def chance(outcome: Outcome) -> list[tuple[float, float]]:
            return guessed(len(outcome["scores"]), len(outcome["relevant"]), self.cutoff)

        return {f"mrr_{self.cutoff}": Mean(lambda o: reciprocal(o["rank"], self.cutoff), chance=chance)}


@dataclass(frozen=True)
class Item:
    """One query, what stands before it once for each passage, and the relevant ones' numbers; `where` it is written."""

    query: str
    prompts: tuple[str, ...]
    relevant: tuple[int, ...]
    where: str


@dataclass(frozen=True)
class Prepared:
    """Items, the request of each (prompt, query), and how many passages were cut."""

    items: tuple[Item, ...]
    texts: dict[tuple[str, str], Request]
    n_cut: int


def rank_of(scores: Sequence[float], relevant: Sequence[int]) -> int:
    """The rank, from 1 on, of the first relevant one: after all others that have as high a score."""
    best = max(scores[i] for i in relevant)
    return 1 + sum(s >= best for i, s in enumerate(scores) if i not in set(relevant))


def reciprocal(rank: int, cutoff: int) -> float:
    """1 / rank, and 0 beyond the cutoff."""
    return 1 / rank if rank <= cutoff else 0.0


def guessed(n: int, n_relevant: int, cutoff: int) -> list[tuple[float, float]]:
    """The reciprocal ranks of a random order, each with its probability: the first of `n_relevant` is at rank r where
    the others are among the n - r that follow."""
    total = comb(n, n_relevant)
    ranks = range(1, n - n_relevant + 2)
    return [(reciprocal(r, cutoff), comb(n - r, n_relevant - 1) / total) for r in ranks]
