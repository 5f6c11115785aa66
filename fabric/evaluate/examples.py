"""A trial's own examples: how well it answers what it was trained to answer.

Synthetic tasks: each row's asked positions. What a model was fine-tuned on: the official metrics of classes (GLUE,
arXiv 1804.07461), numbers, tags (CoNLL-2003's entities) and answers (SQuAD, arXiv 1606.05250), each item's answer put
together from its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fabric.data.examples.base import NUMBER_STEP, UNASKED
from fabric.evaluate.answers import exact, f1
from fabric.evaluate.task import Outcome

if TYPE_CHECKING:
    from fabric.data.example_cache import ExampleCache
    from fabric.data.examples.base import Built, ExamplesConfig

BATCH = 32


@dataclass(frozen=True)
class Asked:
    """Rows that are asked: ids and targets int64 [N, 2, T] of some of them by number, how many there are, and what the
    answers to each are judged by beside its targets."""

    rows: Callable[[range], np.ndarray]
    n_rows: int
    items: Sequence[Mapping[str, Any]] | None

    @classmethod
    def of_cache(cls, cache: ExampleCache, split: str) -> Asked:
        """A split of a cache."""
        n_rows = cache.n_rows(split, cache.seq_len)
        return cls(lambda which: cache.rows(split, cache.seq_len, which), n_rows, cache.items(split))

    @classmethod
    def of_built(cls, built: Built) -> Asked:
        """Rows in memory."""
        rows_N2T = np.stack((built.ids_NT, built.targets_NT), axis=1).astype(np.int64)
        return cls(lambda which: rows_N2T[which.start : which.stop], len(rows_N2T), built.items)

    def first(self, n: int | None) -> Asked:
        """The rows of the first `n` items (None: of all)."""
        if n is None:
            return self
        if self.items is None:
            return replace(self, n_rows=min(n, self.n_rows))
        owners = [item["owner"] for item in self.items]
        kept = set(list(dict.fromkeys(owners))[:n])
        return replace(self, n_rows=sum(owner in kept for owner in owners))

    def within(self, n_rows: int | None) -> Asked:
        """The first items that `n_rows` rows hold whole, at least one (None: all)."""
        if n_rows is None or n_rows >= self.n_rows:
            return self
        if self.items is None:
            return replace(self, n_rows=max(1, n_rows))
        owners = [item["owner"] for item in self.items]
        n_whole = len(set(owners[:n_rows])) - (owners[n_rows] in owners[:n_rows])
        return self.first(max(1, n_whole))


@dataclass(frozen=True)
class Answered:
    """Rows' targets, what they are judged by, and what a model answered to each."""

    targets: Sequence[np.ndarray]
    items: Sequence[Mapping[str, Any]] | None
    said: Sequence[Any]


def outcomes_of(
    model: Any,
    objective: Any,
    examples: ExamplesConfig,
    asked: Asked,
    *,
    said: Sequence[Any] = (),
    precision: str = "fp32",
    batch_size: int = BATCH,
) -> list[Outcome]:
    """The outcomes of items: one a row, but of tagged words one a sentence, of spans one a question. The model is in
    evaluation mode; of the first rows it has `said` what it says already."""
    heard = list(said[: asked.n_rows])
    left = range(len(heard), asked.n_rows)
    for some in (left[i : i + batch_size] for i in range(0, len(left), batch_size)):
        heard += _said(model, objective, asked.rows(some), precision)
    targets = [
        targets_T for i in range(0, asked.n_rows, batch_size)
        for targets_T in asked.rows(range(i, min(i + batch_size, asked.n_rows)))[:, 1]
    ]  # fmt: skip
    return JUDGES[examples.asks](Answered(targets, asked.items, heard), examples)


def _said(model: Any, objective: Any, rows_B2T: np.ndarray, precision: str) -> list[Any]:
    """What the model says to some rows."""
    from fabric.train.step import autocast

    device = next(model.parameters()).device
    pair = objective.examples(rows_B2T, seed=0, step=0, n_ids=0)
    ids_BT, targets_BT = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in pair)
    with torch.inference_mode(), autocast(device.type, precision):
        return list(objective.judged(model, ids_BT, targets_BT, read=True).said_B)


def _asked(targets_T: np.ndarray) -> list[int]:
    found: list[int] = targets_T[targets_T != UNASKED].tolist()
    return found


# ---- judges: outcomes of rows


def _ids(answered: Answered, _: Any) -> list[Outcome]:
    return [{"n_asked": len(_asked(t)), **s} for t, s in zip(answered.targets, answered.said, strict=True)]


def _classes(answered: Answered, examples: Any) -> list[Outcome]:
    """Each says which classes there are and the official metrics: metrics are functions of outcomes alone."""
    names = examples.about.classes
    asked = {"classes": list(names), "metrics": list(examples.about.metrics)}
    pairs = zip(answered.targets, answered.said, strict=True)
    return [{"answer": names[_asked(t)[0]], "guess": names[s], **asked} for t, s in pairs]


def _numbers(answered: Answered, _: Any) -> list[Outcome]:
    pairs = zip(answered.targets, answered.said, strict=True)
    return [{"number": round(_asked(t)[0] * NUMBER_STEP, 4), "guess": float(s)} for t, s in pairs]


def _tags(answered: Answered, examples: Any) -> list[Outcome]:
    """Sentences, put together from their rows."""
    names = examples.about.tags
    assert answered.items is not None
    found: dict[int, dict[str, Any]] = {}
    for targets_T, said, item in zip(answered.targets, answered.said, answered.items, strict=False):
        sentence = found.setdefault(item["owner"], {"tags": [], "guess": []})
        sentence["tags"] += [names[i] for i in _asked(targets_T)]
        sentence["guess"] += [names[i] for i in said]
    is_entities = examples.about.is_entities
    return [{**s, "entities": _counted(s) if is_entities else None} for s in found.values()]


def _counted(sentence: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Of each type of entity: right ones, those that are there, those that were guessed."""
    gold, guess = set(entities(sentence["tags"])), set(entities(sentence["guess"]))
    kinds = sorted({kind for kind, _, _ in gold | guess})
    return {
        kind: [sum(e[0] == kind for e in which) for which in (gold & guess, gold, guess)] for kind in kinds
    }


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Type, first and last word of every entity, as CoNLL's own script (and seqeval) reads tags.

    An entity begins with B-, or with an I- that follows on O or on another type; so IOB1 and IOB2 are read alike.
    """
    found: list[tuple[str, int, int]] = []
    begin, kind = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        place, _, here = tag.partition("-")
        if kind and (place != "I" or here != kind):
            found.append((kind, begin, i - 1))
            kind = ""
        if here and not kind:
            begin, kind = i, here
    return found


def _spans(answered: Answered, examples: Any) -> list[Outcome]:
    """Questions: the best span of all windows, or none where no answer is likelier in every one of them."""
    assert answered.items is not None
    found: dict[str, dict[str, Any]] = {}
    for said, item in zip(answered.said, answered.items, strict=False):
        about = {"question": item["owner"], "references": item["references"]}
        best = found.setdefault(item["owner"], {**about, "text": "", "score": None, "none": None})
        best["none"] = said["none"] if best["none"] is None else min(best["none"], said["none"])
        if said["best"] is not None and (best["score"] is None or said["best"][2] > best["score"]):
            begin, end, best["score"] = said["best"]
            starts = [0, *item["ends"]]
            best["text"] = item["text"][starts[begin] : item["ends"][end]].strip()
    return [_answer(o, examples.about.has_impossible) for o in found.values()]


def _answer(outcome: Mapping[str, Any], may_be_none: bool) -> Outcome:
    """`margin`: by how much no answer beats the best one, `span`; above 0 none is given, where questions may have
    none."""
    none_wins = outcome["score"] is None or outcome["none"] > outcome["score"]
    text = "" if may_be_none and none_wins else outcome["text"]
    margin = None if outcome["score"] is None else outcome["none"] - outcome["score"]
    references = outcome["references"]
    return {
        "question": outcome["question"],
        "references": references,
        "guess": text,
        "span": outcome["text"],
        "margin": margin,
        "exact": exact(text, references),
        "f1": f1(text, references),
    }


JUDGES: dict[str, Callable[[Answered, Any], list[Outcome]]] = {
    "ids": _ids,
    "class": _classes,
    "number": _numbers,
    "tags": _tags,
    "span": _spans,
}
