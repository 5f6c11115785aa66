"""Minimal pairs (BLiMP, Warstadt et al. 2020, arXiv 1912.00582): is the grammatical sentence the more likely one?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.evaluate.likelihood import ROWS, Request, likelihoods

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
    model: Any, tokenizer: Tokenizer, folder: Path, *, batch_size: int = ROWS, precision: Any = "fp32"
) -> dict[str, float] | None:
    """By paradigm, the share of pairs whose good sentence has the higher sum of log-probabilities.

    A sentence is scored whole, after an end-of-text token; a tie counts as wrong. None when a sentence is longer
    than the model's `max_seq_len`: an accuracy over some of the pairs would compare with nothing. BLiMP's headline
    is the mean over paradigms.
    """
    paradigms = read_pairs(folder)
    texts = sorted({text for pairs in paradigms.values() for pair in pairs for text in pair})
    requests = [Request((tokenizer.eos_id,), tuple(tokenizer.encode(text))) for text in texts]
    if max(len(r.continuation) for r in requests) > model.config.max_seq_len:
        return None
    found = likelihoods(model, requests, rows=batch_size, precision=precision)
    nats = {text: likelihood.nats for text, likelihood in zip(texts, found, strict=True)}
    return {name: sum(nats[g] > nats[b] for g, b in pairs) / len(pairs) for name, pairs in paradigms.items()}
