"""Log-likelihoods of continuations, every shared beginning computed once.

The texts of a call begin alike: a few-shot prompt in front of all of them, a question in front of its options, the
first words of a minimal pair. A long beginning of many texts goes through the model by itself, and they follow on
copies of its key/value cache. Shorter ones are shared within a pass: its rows' distinct tokens stand on one line
(`models.shared_rows`), and only attention sees rows. So nothing but attention is padded, or computes a token twice.
What is scored does not depend on how rows are put into batches, but for rounding.

Shapes: T tokens, N distinct tokens of a pass, D width, V vocabulary, P scored positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from fabric.train.loss import rows_at_once
from fabric.train.step import autocast
from models.shared_rows import SharedRows

if TYPE_CHECKING:
    from models import Cache

ROWS = 256  # of one forward pass, at most
TOKENS = 4096  # of one forward pass; one row may have more
CELLS = 4 * TOKENS  # of one pass' rows, padded
CACHE_BYTES = 2**29  # of one pass' keys and values
# A beginning has a pass of its own where that saves attention more than it costs to begin a pass and copy a cache.
WORTH_LENGTH, WORTH_TOKENS = 32, 1024
Asked = tuple[int, int, int]  # place, target, request


class Request(NamedTuple):
    """The continuation's likelihood after the context is asked for. Both are ids; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Likelihood(NamedTuple):
    """`nats` = ln p(continuation | context) <= 0; `is_greedy`: each of its tokens was the likeliest one."""

    nats: float
    is_greedy: bool


def fitted(request: Request, max_seq_len: int) -> Request:
    """The request with as much of its context's end as the model takes in: all of the text but its last token.

    Raises ValueError for a continuation that would have to be cut (no context token would be left).
    """
    room = max_seq_len + 1 - len(request.continuation)
    if room < 1:
        raise ValueError(
            f"an option of {len(request.continuation)} tokens does not fit: the model takes {max_seq_len} "
            "(max_seq_len) and needs one before it; leave the task out, or use a model with a longer context"
        )
    return request._replace(context=request.context[-room:])


@torch.inference_mode()
def likelihoods(
    model: Any, requests: Sequence[Request], *, rows: int = ROWS, precision: Any = "fp32"
) -> list[Likelihood]:
    """The likelihood of each request, in order. `rows`: texts of one forward pass, at most.

    The model is in evaluation mode. Raises ValueError for an empty context or continuation, and for a text longer
    than `max_seq_len` (its last token apart).
    """
    for r in requests:
        if not r.context or not r.continuation:
            raise ValueError("a likelihood needs at least one token of context and one of continuation")
        fitted_length = len(r.context) + len(r.continuation) - 1
        if fitted_length > model.config.max_seq_len:
            raise ValueError(
                f"a text of {fitted_length} tokens is longer than the model's {model.config.max_seq_len}; cut its "
                "context (`fitted`)"
            )
    if not requests:
        return []
    walk = _Walk(model, requests, rows)
    with autocast(walk.device.type, precision):
        walk.run()
    return [Likelihood(n, g) for n, g in zip(walk.nats, walk.greedy, strict=True)]


class _Walk:
    """One call's texts: the requests' inputs in lexicographical order, each all but its last token."""

    def __init__(self, model: Any, requests: Sequence[Request], rows: int) -> None:
        self.model, self.rows = model, rows
        self.device = model.lm_head_weight.device
        self.order = sorted(
            range(len(requests)), key=lambda i: requests[i].context + requests[i].continuation[:-1]
        )
        self.whole = [requests[i].context + requests[i].continuation for i in self.order]
        self.texts = [w[:-1] for w in self.whole]
        self.starts = [len(requests[i].context) - 1 for i in self.order]  # the first position that is scored
        self.nats, self.greedy = [0.0] * len(requests), [True] * len(requests)
        tensors = model.new_cache(1, 1).layers
        self.bytes_per_token = sum(x.nbytes for layer in tensors for x in layer.tensors)

    def run(self) -> None:
        self._visit(0, len(self.texts), self.model.new_cache(1, 1))

    def _visit(self, lo: int, hi: int, cache: Cache) -> None:
        """Score what the texts lo … hi - 1 have after the beginning that the cache holds, the same one of them all."""
        begun: int | None = None
        for first, stop, end in self._parts(lo, hi, cache.n_tokens):
            if end is None:
                begun = first if begun is None else begun
                continue
            if begun is not None:
                self._all(begun, first, cache)
            begun = None
            longer = self._beginning(first, stop, cache, end)
            while first < stop and len(self.texts[first]) == end:
                first += 1
            if first < stop:
                self._visit(first, stop, longer)
        if begun is not None:
            self._all(begun, hi, cache)

    def _parts(self, lo: int, hi: int, n_done: int) -> Iterator[tuple[int, int, int | None]]:
        """The texts in order, in runs that begin with the same `end` tokens, which are worth a pass of their own, or
        (None) with none."""
        waiting = [(lo, hi, n_done)]
        while waiting:
            first, stop, end = waiting.pop()
            n_others = stop - first - 1
            if n_others * (max(map(len, self.texts[first:stop])) - n_done) < WORTH_TOKENS:
                yield first, stop, None
                continue
            end += _n_shared(self.texts[first], self.texts[stop - 1], end)
            if end - n_done >= WORTH_LENGTH and n_others * (end - n_done) >= WORTH_TOKENS:
                yield first, stop, end
                continue
            if len(self.texts[stop - 1]) == end:  # all of them are the same
                yield first, stop, None
                continue
            waiting += reversed(list(self._followed(first, stop, end)))

    def _followed(self, first: int, stop: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Texts that begin with the same `end` tokens, by the next one; first those that have none."""
        begin = first
        while begin < stop:
            at, token = begin, self.texts[begin][end : end + 1]
            while at < stop and self.texts[at][end : end + 1] == token:
                at += 1
            yield begin, at, end
            begin = at

    def _beginning(self, lo: int, hi: int, cache: Cache, end: int) -> Cache:
        """Score the texts' common tokens up to `end`; a cache that holds them."""
        done = cache.n_tokens
        cache = cache.taken(torch.tensor([0], device=self.device), end)
        hidden_1TD = self._hidden([self.texts[lo][done:end]], cache)
        asked = [
            (position - done, self.whole[text][position + 1], self.order[text])
            for text in range(lo, hi)
            for position in range(max(done, self.starts[text]), end)
        ]
        self._score(hidden_1TD[0], asked)
        return cache

    def _all(self, lo: int, hi: int, cache: Cache) -> None:
        """Score the texts lo … hi - 1, as many in a pass as fit."""
        done = cache.n_tokens
        rows = _Rows(done)
        for text in range(lo, hi):
            ids = self.texts[text]
            n_rows, n_tokens, longest = rows.with_one_more(ids)
            n_bytes = n_rows * (done + longest) * self.bytes_per_token if done else 0
            is_full = (
                n_rows > self.rows or n_tokens > TOKENS or n_rows * longest > CELLS or n_bytes > CACHE_BYTES
            )
            if rows.ids and is_full:
                self._pass(rows, cache)
                rows = _Rows(done)
            places = rows.add(ids)
            rows.asked += [
                (places[position - done], self.whole[text][position + 1], self.order[text])
                for position in range(max(done, self.starts[text]), len(ids))
            ]
        self._pass(rows, cache)

    def _pass(self, rows: _Rows, cache: Cache) -> None:
        if cache.n_tokens:
            copies = torch.zeros(len(rows.rows), dtype=torch.long, device=self.device)
            cache = cache.taken(copies, cache.n_tokens + rows.longest)
        shared = SharedRows.of(rows.rows, self.device) if len(rows.rows) > 1 else None
        hidden_1ND = self._hidden([rows.ids], cache if cache.n_tokens else None, shared)
        self._score(hidden_1ND[0], rows.asked)

    def _hidden(self, ids: Any, cache: Cache | None, shared: SharedRows | None = None) -> torch.Tensor:
        hidden: torch.Tensor = self.model.hidden(
            torch.tensor(ids, device=self.device), cache=cache, shared=shared
        )
        return hidden

    def _score(self, hidden_ND: torch.Tensor, asked: list[Asked]) -> None:
        """Add up what the tokens at the places asked for predict."""
        if not asked:
            return
        weight_VD = self.model.lm_head_weight
        size = rows_at_once(*weight_VD.shape)
        asked.sort()
        at, target, _ = torch.tensor(asked, device=self.device).T
        distinct, place = at.unique(return_inverse=True)
        hidden_PD = hidden_ND[distinct]
        nats, right = [], []
        for start in range(0, len(hidden_PD), size):
            logits_CV = F.linear(hidden_PD[start : start + size], weight_VD).float()
            is_here = (place >= start) & (place < start + size)
            row, of = place[is_here] - start, target[is_here]
            nats += (logits_CV[row, of] - logits_CV.logsumexp(-1)[row]).double().tolist()
            right += (logits_CV.argmax(-1)[row] == of).tolist()
        for (_, _, request), n, is_right in zip(asked, nats, right, strict=True):
            self.nats[request] += n
            self.greedy[request] &= is_right


class _Rows:
    """Texts of one pass, after the `n_done` tokens that all begin with: `rows`, places on the line of `ids`; a text
    that another goes on with has no row of its own. `longest`: tokens of the longest row."""

    def __init__(self, n_done: int) -> None:
        self.n_done = n_done
        self.ids: list[int] = []
        self.rows: list[list[int]] = []
        self.asked: list[Asked] = []
        self._last: tuple[int, ...] = ()
        self.longest = 0

    def with_one_more(self, text: tuple[int, ...]) -> tuple[int, int, int]:
        """Rows, tokens and the longest row's length with that text, too."""
        kept = self._kept(text)
        n_rows = len(self.rows) + (not self.rows or kept < len(self.rows[-1]))
        n = len(text) - self.n_done
        return n_rows, len(self.ids) + n - kept, max(self.longest, n)

    def add(self, text: tuple[int, ...]) -> list[int]:
        """The places of a text's tokens; texts come in lexicographical order."""
        kept = self._kept(text)
        new = text[self.n_done + kept :]
        row = [*(self.rows[-1][:kept] if self.rows else []), *range(len(self.ids), len(self.ids) + len(new))]
        self.ids += new
        if self.rows and kept == len(self.rows[-1]):
            self.rows[-1] = row
        else:
            self.rows.append(row)
        self._last, self.longest = text, max(self.longest, len(row))
        return row

    def _kept(self, text: tuple[int, ...]) -> int:
        """Tokens that the text has in common with the last row."""
        return _n_shared(self._last, text, self.n_done) if self.rows else 0


def _n_shared(a: Sequence[int], b: Sequence[int], begin: int) -> int:
    """How many tokens from `begin` on are the same."""
    shortest = min(len(a), len(b))
    return next((i for i in range(begin, shortest) if a[i] != b[i]), max(begin, shortest)) - begin
