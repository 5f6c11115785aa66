"""Continuations of many prompts, every text until its own end, through the key/value cache.

What all prompts begin with goes through the model once. Prompts of like length share a batch: it is filled up to its
shortest prompt in few passes, then goes on token by token, and a row whose prompt is longer takes the rest of it from
there. So nothing is padded, and positions are right whatever the mixer. A row that has ended leaves the batch. What is
generated does not depend on the batch, but for rounding: every row draws from a generator of its own.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from fabric.evaluate.likelihood import CACHE_BYTES, TOKENS
from fabric.train.step import autocast
from models import Cache
from models.sampling import sample

ROWS = 32  # of a batch, at most
SPREAD = 32  # tokens by which prompts of a batch differ in length, at most


@dataclass(frozen=True)
class Drawing:
    """How tokens are chosen: temperature 0 is greedy; prompt i draws by (seed, i)."""

    temperature: float = 0.0
    top_p: float | None = None
    seed: int = 0


@dataclass
class _Text:
    """A prompt on its way: its ids, what was generated, what its draws go by."""

    number: int
    ids: Sequence[int]
    generator: torch.Generator | None
    new: list[int] = field(default_factory=list)


@torch.inference_mode()
def continuations(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    has_ended: Callable[[Sequence[int]], bool],
    drawing: Drawing | None = None,
    *,
    rows: int = ROWS,
    precision: Any = "fp32",
) -> list[list[int]]:
    """The new ids of every prompt, in order; `has_ended` is asked after each token, that token included.

    Raises ValueError for an empty prompt, and one that leaves no room for its new tokens in `max_seq_len`.
    """
    limit, drawing = model.config.max_seq_len, drawing or Drawing()
    for ids in prompts:
        if not ids or len(ids) + max_new_tokens > limit:
            raise ValueError(
                f"a prompt of {len(ids)} tokens and {max_new_tokens} new ones: the prompt needs one token at least, "
                f"and the model takes {limit} together"
            )
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    device = model.lm_head_weight.device
    texts = [_Text(i, ids, _generator(drawing, i, device)) for i, ids in enumerate(prompts)]
    with autocast(device.type, precision):
        n_shared = _n_shared(prompts)
        shared = model.new_cache(1, max(1, n_shared))
        _fill(model, [prompts[0][:n_shared]], shared)
        for batch in _batches(texts, max_new_tokens, rows, _bytes_per_token(model)):
            _decode(model, batch, shared, max_new_tokens, has_ended, drawing)
    return [t.new for t in texts]


def _generator(drawing: Drawing, number: int, device: torch.device) -> torch.Generator | None:
    if drawing.temperature == 0:
        return None
    return torch.Generator(device=device).manual_seed((drawing.seed * 1_000_003 + number) % 2**63)


def _n_shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many ids all prompts begin with; each keeps one of its own, whose output is needed."""
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # in order, they differ soonest
    most, n = min(map(len, prompts)) - 1, 0
    while n < most and first[n] == last[n]:
        n += 1
    return n


def _bytes_per_token(model: Any) -> int:
    return max(1, model.new_cache(1, 1).nbytes())


def _batches(texts: Sequence[_Text], n_new: int, rows: int, bytes_per_token: int) -> Iterator[list[_Text]]:
    """The longest first, so that a cache too large for memory is met at once."""
    batch: list[_Text] = []
    for text in sorted(texts, key=lambda t: -len(t.ids)):
        if batch:
            longest = len(batch[0].ids)
            is_full = (len(batch) + 1) * (longest + n_new) * bytes_per_token > CACHE_BYTES
            if is_full or len(batch) >= rows or longest - len(text.ids) > SPREAD:
                yield batch
                batch = []
        batch.append(text)
    if batch:
        yield batch


def _fill(model: Any, ids_BT: Sequence[Sequence[int]], cache: Cache) -> torch.Tensor | None:
    """Ids of equal number through the model; what came out at the last one (B, D), None for no ids."""
    device, size, last_BD = model.lm_head_weight.device, max(1, TOKENS // len(ids_BT)), None
    for start in range(0, len(ids_BT[0]), size):
        chunk_BT = torch.tensor([list(row[start : start + size]) for row in ids_BT], device=device)
        last_BD = model.hidden(chunk_BT, cache=cache)[:, -1]
    return last_BD


def _decode(
    model: Any,
    texts: list[_Text],
    shared: Cache,
    max_new_tokens: int,
    has_ended: Callable[[Sequence[int]], bool],
    drawing: Drawing,
) -> None:
    device, done = model.lm_head_weight.device, shared.n_tokens
    capacity = max(len(t.ids) for t in texts) + max_new_tokens
    cache = shared.taken(torch.zeros(len(texts), dtype=torch.long, device=device), capacity)
    n = min(len(t.ids) for t in texts)
    last_BD = _fill(model, [t.ids[done:n] for t in texts], cache)
    while True:
        assert last_BD is not None
        following = _following(model, texts, last_BD, n, drawing)
        staying = []
        for row, (text, token) in enumerate(zip(texts, following, strict=True)):
            if len(text.ids) <= n:
                text.new.append(token)
                if len(text.new) == max_new_tokens or has_ended(text.new):
                    continue
            staying.append(row)
        if not staying:
            return
        if len(staying) < len(texts):
            texts = [texts[row] for row in staying]
            cache.select(torch.tensor(staying, device=device))
        last_BD = _fill(model, [[following[row]] for row in staying], cache)
        n += 1


def _following(
    model: Any, texts: Sequence[_Text], last_BD: torch.Tensor, n: int, drawing: Drawing
) -> list[int]:
    """Every row's token number n: its prompt's where that goes on, else a new one."""
    logits_BV = F.linear(last_BD, model.lm_head_weight).float()
    greedy = logits_BV.argmax(-1).tolist()
    found = []
    for row, text in enumerate(texts):
        if n < len(text.ids):
            found.append(text.ids[n])
        elif text.generator is None:
            found.append(greedy[row])
        else:
            ids_1 = sample(logits_BV[row : row + 1], drawing.temperature, None, drawing.top_p, text.generator)
            found.append(int(ids_1))
    return found
