"""Sample quality: texts drawn from the model, their diversity and repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

import models
from fabric.evaluate.config import SamplesConfig

if TYPE_CHECKING:
    from fabric.data.tokenizer import Tokenizer


def draw(model: Any, tokenizer: Tokenizer, config: SamplesConfig, seed: int) -> list[list[int]]:
    """`config.n` texts of `config.tokens` tokens, each begun by an end-of-text token (which is not returned).

    No text, an empty list, when they would be longer than the model's `max_seq_len`.
    """
    if config.tokens + 1 > model.config.max_seq_len:
        return []
    start_N1 = torch.full((config.n, 1), tokenizer.eos_id, device=model.lm_head_weight.device)
    generator = torch.Generator(device=start_N1.device).manual_seed(seed)
    ids = models.generate(model, start_N1, config.tokens, temperature=config.temperature, generator=generator)
    rows: list[list[int]] = ids[:, 1:].tolist()
    return rows


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All n-grams of a sequence, in order."""
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def diversity(samples: Sequence[Sequence[int]]) -> dict[str, float | None]:
    """distinct_n = distinct n-grams / n-grams over all samples (Li et al. 2016, arXiv 1510.03055, n = 1, 2);
    repetition_4 = the mean over samples of 1 - distinct / all 4-grams (Welleck et al. 2020, arXiv 1908.04319)."""
    found: dict[str, float | None] = {}
    for n in (1, 2):
        grams = [g for s in samples for g in ngrams(s, n)]
        found[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else None
    repeated = [1 - len(set(grams)) / len(grams) for s in samples if (grams := ngrams(s, 4))]
    found["repetition_4"] = sum(repeated) / len(repeated) if repeated else None
    return found
