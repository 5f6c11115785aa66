"""Sampling from a model, one token at a time, with its cache. Shapes: B batch, T prompt tokens, N vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.linear import linears
from models.decoder import CausalLM
from models.decoding import TokenStep


@torch.no_grad()
def generate(
    model: CausalLM,
    input_ids_BT: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
    attention_mask: Tensor | None = None,
    has_ended: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The prompts with up to `max_new_tokens` tokens appended, ids (B, T + new).

    `temperature` 0 is greedy. `top_k` keeps the k likeliest tokens, `top_p` the fewest that together reach p
    (arXiv 1904.09751), in this order. A text that drew `eos_id` is filled up with it; when all did, the loop
    ends. `has_ended` is given all new ids (B, n) after each token, and says of each text whether that was its last
    (bool, B). Prompts of different lengths are padded on the left, with `attention_mask` (B, T) 0 there. Raises
    ValueError for arguments out of range, a prompt padded on the right, a text longer than the model's
    `max_seq_len`, or a bidirectional model.
    """
    _check(model, input_ids_BT, max_new_tokens, temperature, top_k, top_p, attention_mask)
    B, T = input_ids_BT.shape
    if max_new_tokens == 0:
        return input_ids_BT
    cache = model.new_cache(B, T + max_new_tokens)
    ended_B = torch.zeros(B, dtype=torch.bool, device=input_ids_BT.device)
    new_ids, ids, mask = [input_ids_BT], input_ids_BT, attention_mask
    step: TokenStep | None = None
    for i in range(max_new_tokens):
        if step is None:
            last_BD = model.hidden(ids, mask, cache)[:, -1]
            logits_BN = linears(last_BD, model.lm_head_weight)[0]
            step = TokenStep.of(model, cache)
        else:
            logits_BN = step(int(ids)).unsqueeze(0)
        ids_B = sample(logits_BN, temperature, top_k, top_p, generator)
        if eos_id is not None:
            ids_B = ids_B.masked_fill(ended_B, eos_id)
            ended_B |= ids_B == eos_id
        ids, mask = ids_B.unsqueeze(1), None
        new_ids.append(ids)
        if has_ended is not None:
            ended_B |= has_ended(torch.cat(new_ids[1:], dim=1))
        ends = eos_id is not None or has_ended is not None
        if ends and i + 1 < max_new_tokens and bool(ended_B.all()):
            break
    return torch.cat(new_ids, dim=1)


def sample(
    logits_BN: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token per row, ids_B."""
    if temperature == 0:
        return logits_BN.argmax(dim=-1)
    logits_BN = logits_BN.float() / temperature
    if top_k is not None and top_k < logits_BN.shape[-1]:
        smallest_kept_B1 = logits_BN.topk(top_k, dim=-1).values[:, -1:]
        logits_BN = logits_BN.masked_fill(logits_BN < smallest_kept_B1, float("-inf"))
    probs_BN = logits_BN.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        sorted_BN, order_BN = probs_BN.sort(dim=-1, descending=True)
        # A token goes when those before it reach p already; the first always stays.
        sorted_BN = sorted_BN.masked_fill(sorted_BN.cumsum(-1) - sorted_BN >= top_p, 0.0)
        probs_BN = torch.zeros_like(probs_BN).scatter(-1, order_BN, sorted_BN)
    return torch.multinomial(probs_BN, 1, generator=generator).squeeze(1)


def _check(
    model: CausalLM,
    input_ids_BT: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    attention_mask: Tensor | None,
) -> None:
    if not model.config.causal:
        raise ValueError(
            f"{type(model).__name__} is bidirectional (causal=False): it cannot continue a text; use a causal model"
        )
    if input_ids_BT.ndim != 2 or input_ids_BT.shape[1] == 0:
        raise ValueError(
            f"input ids have shape {tuple(input_ids_BT.shape)}; give (batch, tokens), at least one token"
        )
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} is negative")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} is not a number from 0 on; 0 is greedy, 1 as trained")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} keeps no token; use 1 or more, or None for all")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is outside (0, 1]; None keeps all tokens")
    total, limit = input_ids_BT.shape[1] + max_new_tokens, model.config.max_seq_len
    if total > limit:
        raise ValueError(
            f"prompt and new tokens are {total}, more than max_seq_len={limit}: "
            f"use max_new_tokens={max(0, limit - input_ids_BT.shape[1])} or a shorter prompt"
        )
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "a prompt is padded on the right; pad on the left, so that new tokens follow the text"
        )
