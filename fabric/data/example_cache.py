"""The cache of labelled examples: every split as whole rows, with a manifest that says what they must be.

    <cache_root>/tokens/<key>/   manifest.json {train,validation,test}.rows.bin
                                 [{validation,test}.items.json tokenizer.json token_bytes.npy]

A split's rows are int32 [N, 2, T]: ids (-1: padding on the right) and targets (-100: nothing is asked); its items, one
a row, are what its answers are judged by where the targets do not say it all.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from fabric.data.build import Preparation
from fabric.data.building import WORK
from fabric.data.cache import SCHEMA_VERSION, TokenCache
from fabric.data.corpus import SPLITS
from fabric.data.disk import canonical_json, sha256_of, sha256_of_file, write_atomic
from fabric.data.examples.base import PADDING, UNASKED, ExamplesConfig

if TYPE_CHECKING:
    from pathlib import Path

    from fabric.data.config import DataConfig
    from fabric.data.tokenizer import Tokenizer

EXAMPLES_VERSION = 1  # raise when the same examples would give other files


class ExampleCache(TokenCache):
    """Prepared examples, read-only; a `TokenCache` whose rows do not overlap, have one length and their own targets."""

    def tokens(self, split: str) -> np.ndarray:
        raise ValueError(f"{self.path} holds labelled examples, which are no stream of tokens; read its rows")

    def n_tokens(self, split: str) -> int:
        """Positions of a split, padding included."""
        return self._n_rows(split) * self.seq_len

    @property
    def seq_len(self) -> int:
        """Positions of every row."""
        return int(self.manifest["seq_len"])

    def _n_rows(self, split: str) -> int:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
        return int(self.manifest["splits"][split]["n_examples"])

    def n_rows(self, split: str, seq_len: int) -> int:
        """Examples of a split; none for another `seq_len` than theirs."""
        return self._n_rows(split) if seq_len == self.seq_len else 0

    def rows(self, split: str, seq_len: int, indices: Any) -> np.ndarray:
        """Examples by number: int64 [n, 2, seq_len], ids (-1: padding) and targets (-100: nothing is asked).

        Raises ValueError for an index outside [0, n_rows).
        """
        n_rows = self.n_rows(split, seq_len)
        wanted = np.asarray(indices, np.int64).ravel()
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= n_rows):
            raise ValueError(
                f"examples {wanted.min()} to {wanted.max()} asked for; {split} has {n_rows} of length {seq_len}"
            )
        if split not in self._streams:
            shape = (n_rows, 2, self.seq_len)
            mapped = np.memmap(self.path / f"{split}.rows.bin", np.dtype("<i4"), "r", shape=shape)
            self._streams[split] = np.asarray(mapped)
        return self._streams[split][wanted].astype(np.int64)

    def items(self, split: str) -> list[dict[str, Any]] | None:
        """What the answers to each row are judged by; None where targets say it all."""
        path = self.path / f"{split}.items.json"
        found: list[dict[str, Any]] | None = json.loads(path.read_bytes()) if path.is_file() else None
        return found

    def remarks(self, split: str) -> tuple[str, ...]:
        """What a reader of a split's scores must know of its rows."""
        return tuple(self.manifest["splits"][split].get("remarks", ()))

    def n_bytes(self, split: str, tokens: Any) -> float:
        """0: what examples hold is no text of a length."""
        return 0.0


def examples_key(config: DataConfig, root: Path) -> str:
    """The content address of a config's examples: their identity, the length of a row, a text's tokenizer."""
    assert config.examples is not None
    about: dict[str, Any] = {
        "examples": EXAMPLES_VERSION,
        "identity": config.examples.identity(root),
        "seq_len": config.seq_len,
    }
    if config.examples.READS_TEXT:
        about["tokenizer"] = config.tokenizer.identity(root)
    return sha256_of(about)


def examples_of(config: DataConfig) -> ExamplesConfig:
    """The examples of a config that has them."""
    assert config.examples is not None
    return config.examples


class ExampleBuild(Preparation):
    """One building of an example cache; the manifest is written last."""

    def run(self) -> None:
        """Build every split, check it, write it."""
        examples = examples_of(self.config)
        tokenizer = self._tokenizer(examples) if examples.READS_TEXT else None
        n_ids = examples.n_ids if tokenizer is None else tokenizer.vocab_size
        splits = {}
        for number, split in enumerate(SPLITS):
            self.progress("examples", number / len(SPLITS))
            splits[split] = self._split(split, examples, tokenizer, n_ids)
        self.progress("examples", 1.0)
        files = sorted(f for f in self.temp.iterdir() if f.is_file() and f.name != WORK)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "key": self.key,
            "rows": "examples",
            "examples": examples.identity(self.root),
            "seq_len": self.config.seq_len,
            "vocab_size": n_ids,
            "splits": splits,
            "tokenizer": None if tokenizer is None else self._described(tokenizer),
            "files": {f.name: {"bytes": f.stat().st_size, "sha256": sha256_of_file(f)} for f in files},
        }
        write_atomic(self.temp / "manifest.json", canonical_json(manifest).encode())

    def _split(
        self, split: str, examples: ExamplesConfig, tokenizer: Tokenizer | None, n_ids: int
    ) -> dict[str, Any]:
        built = examples.built(split, self.config.seq_len, tokenizer)
        _check(
            built.ids_NT, built.targets_NT, n_ids, f"{examples.kind}: {split}", examples.n_answers or n_ids
        )
        rows = np.stack((built.ids_NT, built.targets_NT), axis=1).astype("<i4")
        write_atomic(self.temp / f"{split}.rows.bin", rows.tobytes())
        if built.items is not None and split != "train":
            assert len(built.items) == len(rows), "one item a row"
            write_atomic(self.temp / f"{split}.items.json", canonical_json(list(built.items)).encode())
        about: dict[str, Any] = {"n_examples": len(rows), "n_asked": int((built.targets_NT != UNASKED).sum())}
        return about | ({"remarks": list(built.remarks)} if built.remarks else {})

    def _tokenizer(self, examples: ExamplesConfig) -> Tokenizer:
        tokenizer = self.config.tokenizer.build(examples.texts, self.root)
        write_atomic(self.temp / "tokenizer.json", tokenizer.json.encode())
        np.save(self.temp / "token_bytes.npy", tokenizer.token_bytes())
        return tokenizer

    def _described(self, tokenizer: Tokenizer) -> dict[str, Any]:
        eos = {"eos_id": tokenizer.eos_id, "eos_token": tokenizer.eos_token}
        return {"identity": self.config.tokenizer.identity(self.root), "sha256": tokenizer.sha256, **eos}


def _check(
    ids_NT: np.ndarray, targets_NT: np.ndarray, n_ids: int, what: str, n_answers: int | None = None
) -> None:
    """Raise ValueError for rows that are no labelled examples of `n_ids` ids, and as many answers unless said."""
    if ids_NT.ndim != 2 or ids_NT.shape != targets_NT.shape or not len(ids_NT):
        raise ValueError(
            f"examples {what}: ids {ids_NT.shape} and targets {targets_NT.shape} are not rows of one shape"
        )
    padded = ids_NT == PADDING
    if (padded[:, :-1] & ~padded[:, 1:]).any():
        raise ValueError(f"examples {what}: padding is left of a token; it belongs on the right")
    if ((ids_NT < PADDING) | (ids_NT >= n_ids)).any():
        raise ValueError(f"examples {what}: ids from {ids_NT.min()} to {ids_NT.max()}; there are {n_ids}")
    asked = targets_NT != UNASKED
    most = n_ids if n_answers is None else n_answers
    if (asked & ((targets_NT < 0) | (targets_NT >= most) | padded)).any():
        raise ValueError(f"examples {what}: a target is no number below {most}, or is asked of padding")
    if not asked.any(axis=1).all():
        raise ValueError(f"examples {what}: row {int(np.argmin(asked.any(axis=1)))} asks nothing")
