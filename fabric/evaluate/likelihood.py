"""Log-likelihoods of continuations, every shared beginning computed once.

The requests of a call form a trie of token ids: a few-shot prompt in front of all of them, a question in front of its
options, the first words of a minimal pair. It is walked from the root; a node's run of tokens goes through the model
once, with the key/value cache of what precedes it, and its children go on from copies. Rows of one forward pass have
the same depth, so nothing is padded but the ends of texts that nothing follows. What is scored does not depend on how
rows are put into batches, but for rounding.

Shapes: B rows, T tokens, D width, V vocabulary, P scored positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from fabric.train.loss import rows_at_once
from fabric.train.step import autocast

if TYPE_CHECKING:
    from models import Cache

ROWS = 256  # of one forward pass, at most
TOKENS = 4096  # of one forward pass; one row may have more
CACHE_BYTES = 2**29  # of one pass' keys and values


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


@dataclass(frozen=True)
class _Node:
    """The texts lo … hi - 1 (in order), which begin with the same `end` tokens; `n_done` of them are in the cache."""

    lo: int
    hi: int
    n_done: int
    end: int
    is_last: bool  # nothing follows on its run

    @property
    def n_left(self) -> int:
        return self.end - self.n_done


class _Walk:
    """One call's trie: `texts` are the requests' inputs in lexicographical order, each all but its last token."""

    def __init__(self, model: Any, requests: Sequence[Request], rows: int) -> None:
        self.model, self.rows = model, rows
        self.device = model.lm_head_weight.device
        self.order = sorted(
            range(len(requests)), key=lambda i: requests[i].context + requests[i].continuation[:-1]
        )
        whole = [requests[i].context + requests[i].continuation for i in self.order]
        self.texts, self.whole = [w[:-1] for w in whole], whole
        self.starts = [len(requests[i].context) - 1 for i in self.order]  # the first position that is scored
        self.nats, self.greedy = [0.0] * len(requests), [True] * len(requests)
        tensors = model.new_cache(1, 1).layers
        self.bytes_per_token = sum(x.nbytes for layer in tensors for x in layer.tensors)

    def run(self) -> None:
        root = self._node(0, len(self.texts), 0)
        nodes = [root] if root.n_left else list(self._children(root))
        self._walk(nodes, self.model.new_cache(1, max(1, root.end)), [0] * len(nodes))

    def _node(self, lo: int, hi: int, n_done: int) -> _Node:
        first, last = self.texts[lo], self.texts[hi - 1]
        end, shortest = n_done, min(len(first), len(last))
        while end < shortest and first[end] == last[end]:
            end += 1
        # In lexicographical order the last text is the longest of those that begin with all of it.
        return _Node(lo, hi, n_done, end, is_last=len(last) == end)

    def _children(self, node: _Node) -> Iterator[_Node]:
        """The nodes that follow on a run: the texts that go on, by their next token."""
        at = node.lo
        while at < node.hi:
            text = self.texts[at]
            if len(text) == node.end:
                at += 1
                continue
            begin, token = at, text[node.end]
            while at < node.hi and self.texts[at][node.end] == token:
                at += 1
            yield self._node(begin, at, node.end)

    def _walk(self, nodes: list[_Node], cache: Cache, parents: list[int]) -> None:
        """Score `nodes`, which follow on the rows `parents` of a cache that stays as it is, and all that follows."""
        mine, n_rows = False, 0
        while nodes:
            groups = list(self._groups(nodes))
            if len(groups) > 1:
                for group in groups:
                    self._walk([nodes[i] for i in group], cache, [parents[i] for i in group])
                return
            if not mine or parents != list(range(n_rows)):
                deepest = max(len(self.texts[t]) for n in nodes for t in range(n.lo, n.hi))
                cache = cache.taken(torch.tensor(parents, device=self.device), deepest)
            mine, n_rows = True, len(nodes)
            nodes, parents = self._followed(nodes, cache)

    def _followed(self, nodes: list[_Node], cache: Cache) -> tuple[list[_Node], list[int]]:
        """Score the next tokens of `nodes`, the rows of a cache; the nodes that follow, and the row each follows on."""
        going_on = [n.n_left for n in nodes if not n.is_last]
        n_tokens = min(going_on) if going_on else max(n.n_left for n in nodes)
        self._step(nodes, cache, n_tokens)
        following: list[_Node] = []
        parents: list[int] = []
        for row, node in enumerate(nodes):
            if node.n_left > n_tokens:
                new = [replace(node, n_done=node.n_done + n_tokens)]
            else:
                new = [] if node.is_last else list(self._children(node))
            following += new
            parents += [row] * len(new)
        return following, parents

    def _groups(self, nodes: list[_Node]) -> Iterator[list[int]]:
        """Indices of the nodes that go through the model together, and all that follows on them."""
        longest = [max(map(len, self.texts[n.lo : n.hi])) for n in nodes]
        # Texts that end are put by length, so that little is padded; others stay beside their like.
        order = sorted(
            range(len(nodes)), key=lambda i: (nodes[i].is_last, longest[i] if nodes[i].is_last else 0)
        )
        group: list[int] = []
        leaves = deepest = 0
        for i in order:
            n, deep = nodes[i].hi - nodes[i].lo, longest[i]
            n = 1 if nodes[i].is_last else n
            more = max(deepest, deep)
            is_full = (
                leaves + n > self.rows
                or (len(group) + 1) * (more - nodes[i].n_done) > max(TOKENS, more)
                or (leaves + n) * more * self.bytes_per_token > CACHE_BYTES
            )
            if group and is_full:
                yield group
                group, leaves, more = [], 0, deep
            group.append(i)
            leaves, deepest = leaves + n, more
        yield group

    def _step(self, nodes: list[_Node], cache: Cache, n_tokens: int) -> None:
        """The next tokens of every node through the model; what they predict is added up."""
        done = nodes[0].n_done
        ids = [self.texts[n.lo][n.n_done : min(n.end, n.n_done + n_tokens)] for n in nodes]
        padded_BT = torch.tensor([[*row, *[0] * (n_tokens - len(row))] for row in ids], device=self.device)
        hidden_BTD = self.model.hidden(padded_BT, cache=cache)
        places: dict[tuple[int, int], int] = {}  # (row, position) -> its place among the scored ones
        asked: list[tuple[int, int, int]] = []  # place, target, request
        for row, node in enumerate(nodes):
            stop = min(node.end, done + n_tokens)
            for text in range(node.lo, node.hi):
                for position in range(max(done, self.starts[text]), stop):
                    place = places.setdefault((row, position - done), len(places))
                    asked.append((place, self.whole[text][position + 1], self.order[text]))
        if not asked:
            return
        at_rows, at_positions = torch.tensor(list(places), device=self.device).T
        hidden_PD = hidden_BTD[at_rows, at_positions]
        self._score(hidden_PD, asked)

    def _score(self, hidden_PD: torch.Tensor, asked: list[tuple[int, int, int]]) -> None:
        weight_VD = self.model.lm_head_weight
        size = rows_at_once(*weight_VD.shape)
        asked.sort()
        place, target, _ = torch.tensor(asked, device=self.device).T
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
