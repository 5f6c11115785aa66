"""Minimal pairs (BLiMP, Warstadt et al. 2020, arXiv 1912.00582): is the grammatical sentence the more likely one?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fabric.train.loss import nll_per_token
from fabric.train.step import autocast

if TYPE_CHECKING:
    from fabric.data.tokenizer import Tokenizer


def read_pairs(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """{paradigm: [(good, bad)]} of a folder of JSONL files (or one file) with `sentence_good` and `sentence_bad`.

    Raises ValueError naming file and line for anything else.
    """
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else [folder]
    if not files or not files[0].exists():
        raise ValueError(
            f"{folder}: no .jsonl file there; evaluate.minimal_pairs wants a folder of BLiMP's files"
        )
    found: dict[str, list[tuple[str, str]]] = {}
    for file in files:
        pairs = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                pairs.append((str(row["sentence_good"]), str(row["sentence_bad"])))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{file}:{number}: wants sentence_good and sentence_bad") from None
        if pairs:
            found[file.stem] = pairs
    if not found:
        raise ValueError(f"{folder}: its files hold no pairs")
    return found


def minimal_pairs_accuracy(
    model: Any, tokenizer: Tokenizer, folder: Path, *, batch_size: int = 32, precision: Any = "fp32"
) -> float:
    """The mean over paradigms of the share of pairs whose good sentence has the higher sum of log-probabilities.

    A sentence is scored whole, after an end-of-text token; a tie counts as wrong.
    """
    paradigms = read_pairs(folder)
    sentences = sorted({s for pairs in paradigms.values() for pair in pairs for s in pair}, key=len)
    scores: dict[str, float] = {}
    for start in range(0, len(sentences), batch_size):
        batch = sentences[start : start + batch_size]
        ids = [[tokenizer.eos_id, *tokenizer.encode(s)] for s in batch]
        for sentence, nats in zip(batch, _nats(model, ids, precision), strict=True):
            scores[sentence] = nats
    shares = [sum(scores[g] < scores[b] for g, b in pairs) / len(pairs) for pairs in paradigms.values()]
    return sum(shares) / len(shares)


def _nats(model: Any, ids: list[list[int]], precision: Any) -> list[float]:
    """Summed negative log-likelihood of each row; shorter rows are padded on the right, which nothing before sees."""
    longest = max(len(row) for row in ids)
    padded_BT = torch.tensor(
        [row + [row[0]] * (longest - len(row)) for row in ids], device=model.lm_head_weight.device
    )
    counted_BT = torch.tensor([[1.0] * (len(row) - 1) + [0.0] * (longest - len(row)) for row in ids])
    with autocast(padded_BT.device.type, precision):
        nll_BT = nll_per_token(model, padded_BT[:, :-1], padded_BT[:, 1:]).double().cpu()
    total: list[float] = (nll_BT * counted_BT).sum(1).tolist()
    return total
