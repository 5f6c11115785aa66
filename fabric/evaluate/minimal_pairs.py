"""Minimal pairs (BLiMP, Warstadt et al. 2020, arXiv 1912.00582): is the grammatical sentence the more likely one?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from fabric.train.loss import nll_per_token
from fabric.train.step import autocast
from kernels.cross_entropy import IGNORED

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
        # Not splitlines: JSON may hold U+2028 and the like unescaped.
        lines = file.read_bytes().split(b"\n")
        pairs = [_pair(line, f"{file}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
        if pairs:
            found[file.stem] = pairs
    if not found:
        raise ValueError(f"{folder}: its files hold no pairs")
    return found


def _pair(line: bytes, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        good, bad = row["sentence_good"], row["sentence_bad"]
    except (ValueError, KeyError, TypeError):
        good = bad = None
    if not (isinstance(good, str) and isinstance(bad, str) and good and bad):
        raise ValueError(
            f"{where}: a minimal pair is a JSON object with the texts sentence_good and sentence_bad"
        )
    return good, bad


def paradigm_accuracy(
    model: Any, tokenizer: Tokenizer, folder: Path, *, batch_size: int = 32, precision: Any = "fp32"
) -> dict[str, float] | None:
    """By paradigm, the share of pairs whose good sentence has the higher sum of log-probabilities.

    A sentence is scored whole, after an end-of-text token; a tie counts as wrong. None when a sentence is longer
    than the model's `max_seq_len`: an accuracy over some of the pairs would compare with nothing. BLiMP's headline
    is the mean over paradigms.
    """
    paradigms = read_pairs(folder)
    texts = {text for pairs in paradigms.values() for pair in pairs for text in pair}
    ids = {text: [tokenizer.eos_id, *tokenizer.encode(text)] for text in texts}
    if max(map(len, ids.values())) - 1 > model.config.max_seq_len:
        return None
    by_length = sorted(texts, key=lambda text: (len(ids[text]), text))  # little padding, the same every time
    nats: dict[str, float] = {}
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        nats.update(zip(batch, _nats(model, [ids[text] for text in batch], precision), strict=True))
    return {name: sum(nats[g] < nats[b] for g, b in pairs) / len(pairs) for name, pairs in paradigms.items()}


def _nats(model: Any, ids: list[list[int]], precision: Any) -> list[float]:
    """Summed negative log-likelihood of each row; shorter rows are padded on the right, which nothing before sees."""
    padded_BT = pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=0)
    padded_BT = padded_BT.to(model.lm_head_weight.device)
    lengths_B = torch.tensor([len(row) for row in ids], device=padded_BT.device)
    scored_BT = torch.arange(1, padded_BT.shape[1], device=padded_BT.device) < lengths_B[:, None]
    with autocast(padded_BT.device.type, precision):
        nll_BT = nll_per_token(model, padded_BT[:, :-1], padded_BT[:, 1:].masked_fill(~scored_BT, IGNORED))
    total: list[float] = nll_BT.double().sum(1).tolist()
    return total
