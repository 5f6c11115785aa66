"""What lm-evaluation-harness's own model and transformers find, beside ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fabric.evaluate.harness import harness_model
from fabric.evaluate.likelihood import likelihoods
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task

REAL_EIGHT = ("sst2", "cola", "rte", "cb", "boolq", "wic", "copa", "blimp")


def agree_on(
    names: Sequence[str], data: Path, limit: int, subject: Subject, theirs: Any, nats: float = 1e-4
) -> int:
    """Our likelihoods are its own, in our tasks' requests and in strings as its tasks ask; the number of pairs."""
    n_pairs = 0
    for name in names:
        chosen = task(name)
        items = chosen.load(Asked(data, limit))
        prepared = chosen.prepare(items, subject)
        requests = list(prepared.texts.values())
        ours = likelihoods(subject.model, requests)
        asked = [(("", ""), list(r.context), list(r.continuation)) for r in requests]
        its = theirs._loglikelihood_tokens(asked, disable_tqdm=True)
        assert [a.nats for a in ours] == pytest.approx([n for n, _ in its], abs=nats), name
        assert [a.is_greedy for a in ours] == [is_greedy for _, is_greedy in its]
        of = {key: n for key, (n, _) in zip(prepared.texts, its, strict=True)}
        lengths = {k: len(r.continuation) if chosen.score == "mean" else 1 for k, r in prepared.texts.items()}
        guesses = []
        for item in items:
            scores = [of[item.prompt, o] / lengths[item.prompt, o] for o in item.options]
            guesses.append(scores.index(max(scores)))
        assert [o["guess"] for o in chosen.run(prepared, subject).outcomes] == guesses, name

        items = items[:8]
        strings = requests_of(dict.fromkeys((i.prompt, o) for i in items for o in i.options))
        ours = harness_model(subject).loglikelihood(strings, disable_tqdm=True)
        its = theirs.loglikelihood(strings, disable_tqdm=True)
        assert [n for n, _ in ours] == pytest.approx([n for n, _ in its], abs=nats), name
        assert [g for _, g in ours] == [g for _, g in its]
        assert guesses_of(items, strings, ours) == guesses_of(items, strings, its)
        n_pairs += len(requests)
    return n_pairs


def guesses_of(items: Sequence[Any], strings: Sequence[Any], found: Sequence[Any]) -> list[int]:
    """The most likely option of each item."""
    of = {request.args: nats for request, (nats, _) in zip(strings, found, strict=True)}
    return [max(range(len(i.options)), key=lambda k, i=i: of[i.prompt, i.options[k]]) for i in items]


def requests_of(pairs: Iterable[Any]) -> list[Any]:
    """As the harness puts them to a model."""
    return [SimpleNamespace(args=pair) for pair in pairs]


def perplexity_of(theirs: Any, windows: Sequence[Any]) -> float:
    """Of a model of transformers, one window at a time, labels and mean loss as its documentation has them."""
    nats = 0.0
    for window in windows:
        ids_1T = torch.from_numpy(window.ids[None])
        labels_1T = ids_1T.clone()
        labels_1T[:, : ids_1T.shape[1] - window.n_scored] = -100
        with torch.inference_mode():
            nats += float(theirs(ids_1T, labels=labels_1T).loss) * window.n_scored
    return math.exp(nats / sum(w.n_scored for w in windows))
