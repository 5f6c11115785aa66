"""The metrics of a trial's own examples, by what their outcomes are (`fabric.evaluate.examples`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fabric.evaluate.answers import exact, f1
from fabric.evaluate.classes import Counted, of_classes
from fabric.evaluate.measures import Among, Confusion, Mean, Measure, Ratio, Share, Whole
from fabric.evaluate.no_answer import best_of_thresholds
from fabric.evaluate.task import Outcome


def measures_of(outcomes: Sequence[Outcome]) -> dict[str, Measure]:
    """The metrics of some outcomes, the headline first. Raises ValueError without outcomes."""
    if not outcomes:
        raise ValueError("no item was asked")
    keys = outcomes[0].keys()
    if "n_right" in keys:
        found = _of_ids()
    elif "classes" in keys:
        found = _of_classes(outcomes)
    elif "number" in keys:
        found = _of_numbers()
    elif "tags" in keys:
        found = _of_tags(outcomes)
    else:
        found = _of_spans(outcomes)
    return found


def _of_ids() -> dict[str, Measure]:
    return {
        "accuracy": Ratio(lambda o: o["n_right"], lambda o: o["n_asked"], better="higher"),
        "exact": Share(lambda o: o["n_right"] == o["n_asked"]),
        "loss": Mean(lambda o: o["loss"], better="lower"),
    }


def _of_classes(outcomes: Sequence[Outcome]) -> dict[str, Measure]:
    names = list(outcomes[0]["classes"])
    most = max(Counter(o["answer"] for o in outcomes).values()) / len(outcomes)

    def pair(outcome: Outcome) -> tuple[int, int]:
        return names.index(outcome["answer"]), names.index(outcome["guess"])

    def counted(metric: Counted) -> Confusion:
        return Confusion(metric, pair, lambda o: len(names))

    # Who knows nothing of a text but how frequent classes are gets the most frequent one's share.
    accuracy = Share(lambda o: o["answer"] == o["guess"], lambda o: most)
    found: dict[str, Measure] = {
        "accuracy": accuracy,
        **{name: counted(metric) for name, metric in of_classes(names).items()},
    }
    return {name: found[name] for name in dict.fromkeys([*outcomes[0]["metrics"], *found])}


def _of_numbers() -> dict[str, Measure]:
    return {
        "pearson": Whole(lambda os: _correlation(*_columns(os))),
        "spearman": Whole(lambda os: _correlation(*map(_ranks, _columns(os)))),
        "mean_squared_error": Mean(lambda o: (o["number"] - o["guess"]) ** 2, better="lower"),
    }


def _columns(outcomes: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([o["number"] for o in outcomes]), np.array([o["guess"] for o in outcomes])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equal values sharing the mean of theirs."""
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2)[number]
    return ranks


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / spread if spread > 0 else 0.0


def _of_tags(outcomes: Sequence[Outcome]) -> dict[str, Measure]:
    words: dict[str, Measure] = {
        "accuracy": Ratio(_n_right, lambda o: len(o["tags"]), better="higher"),
        "sentences": Share(lambda o: o["tags"] == o["guess"]),
    }
    if outcomes[0]["entities"] is None:
        return words
    kinds = sorted({kind for o in outcomes for kind in o["entities"]})
    found: dict[str, Measure] = {}
    for metric, (above, below) in _OF_ENTITIES.items():
        found[metric] = _entities(above, below, None)
    for kind in kinds:
        found[f"f1_{kind}"] = _entities(*_OF_ENTITIES["f1"], kind)
    return {**found, **words}


def _n_right(outcome: Outcome) -> int:
    return sum(a == b for a, b in zip(outcome["tags"], outcome["guess"], strict=True))


Weights = tuple[int, int, int]
# Of right entities, those that are there and those that were guessed: weights of what is above and below the line.
_OF_ENTITIES: dict[str, tuple[Weights, Weights]] = {
    "f1": ((2, 0, 0), (0, 1, 1)),
    "precision": ((1, 0, 0), (0, 0, 1)),
    "recall": ((1, 0, 0), (0, 1, 0)),
}


def _entities(above: Weights, below: Weights, kind: str | None) -> Measure:
    """A ratio of sums over entities of a kind (None: of all); 0 where there are none."""

    def weighted(weights: Weights) -> Callable[[Outcome], float]:
        def value(outcome: Outcome) -> float:
            counts = outcome["entities"]
            chosen = counts.values() if kind is None else [counts[kind]] if kind in counts else []
            return float(sum(w * n for of_kind in chosen for w, n in zip(weights, of_kind, strict=True)))

        return value

    return Ratio(weighted(above), weighted(below), np.nan_to_num, better="higher")


def _of_spans(outcomes: Sequence[Outcome]) -> dict[str, Measure]:
    found: dict[str, Measure] = {"f1": Mean(lambda o: o["f1"]), "exact": Share(lambda o: bool(o["exact"]))}
    if all(_has_answer(o) for o in outcomes):
        return found
    for name, which in (("has_answer", _has_answer), ("no_answer", lambda o: not _has_answer(o))):
        if any(which(o) for o in outcomes):
            for metric in ("exact", "f1"):
                found[f"{name}_{metric}"] = Among(found[metric], which)
    # With the threshold of declining that is best in hindsight, as the official script tells them beside the others.
    return {**found, "best_exact": best_of_thresholds(exact), "best_f1": best_of_thresholds(f1)}


def _has_answer(outcome: Outcome) -> bool:
    return any(outcome["references"])


def known() -> Mapping[str, Measure]:
    """The metrics that do not depend on classes: what a job may name."""
    tags: Outcome = {"tags": [], "guess": [], "entities": {}}
    classes: Outcome = {
        "answer": "positive",
        "guess": "positive",
        "classes": ["negative", "positive"],
        "metrics": [],
    }
    spans = _of_spans([{"references": ["a"]}, {"references": [""]}])
    kinds = spans, _of_tags([tags]), _of_classes([classes]), _of_numbers()
    return {name: measure for kind in (*kinds, _of_ids()) for name, measure in kind.items()}
