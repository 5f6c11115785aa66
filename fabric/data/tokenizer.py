"""What a tokenizer is to the rest of the room, and how one is read from its `tokenizer.json`.

Two rules hold for every tokenizer here. A document's text never yields a special token (`<|endoftext|>`
written in a text is spelt out), so an EOS in the token stream always ends a document. And every id has a
length in bytes, so that losses can be given in bits per byte.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fabric.data.corpus import DataPart

EOS = "<|endoftext|>"
EOS_NAMES = (EOS, "<|end_of_text|>", "<eos>", "</s>", "<|im_end|>", "[EOS]", "<|eot_id|>", "[SEP]")


class TokenizerConfig(DataPart):
    """Base of every tokenizer's config; one file in `fabric/data/tokenizers/` each."""

    @abstractmethod
    def vocab_size_in(self, cache_root: Path) -> int:
        """Number of ids, known without training."""

    @abstractmethod
    def identity(self, cache_root: Path) -> dict[str, Any]:
        """JSON of everything that decides the ids; no paths."""

    @abstractmethod
    def build(self, train_texts: Callable[[], Iterable[str]], cache_root: Path) -> Tokenizer:
        """The tokenizer; only a trained one calls `train_texts`, the documents of the training split."""


class Tokenizer(ABC):
    """Text to ids and back. `eos_id` ends a document; `json` is the text of its `tokenizer.json`."""

    vocab_size: int
    eos_id: int
    eos_token: str
    json: str

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, no special tokens among them."""

    @abstractmethod
    def encode_with_ends(self, text: str) -> tuple[list[int], np.ndarray]:
        """The same ids, and int64 [ids]: how many characters of the text they stand for, each with all before it."""

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """Text of ids; special tokens are left out, bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text with `eos_id` after the last, int64."""

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """int32 [vocab]: UTF-8 bytes each id stands for; 0 for special ids.

        For byte-level vocabularies the sum over a text's ids is its length. Others lose or add white space;
        the cache records whether the sum was exact (`token_bytes_exact` in its manifest).
        """

    @property
    def sha256(self) -> str:
        """Hash of `json`."""
        return hashlib.sha256(self.json.encode()).hexdigest()


class ByteTokenizer(Tokenizer):
    """Ids 0-255 are the bytes of UTF-8, 256 is EOS."""

    vocab_size, eos_id, eos_token = 257, 256, EOS

    def __init__(self) -> None:
        self.json = byte_tokenizer_json()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_with_ends(self, text: str) -> tuple[list[int], np.ndarray]:
        data = np.frombuffer(text.encode(), np.uint8)
        begins = (data & 0xC0) != 0x80  # a character's first byte
        ends = np.append(begins[1:], [True])[: len(data)]
        return data.tolist(), np.cumsum(ends, dtype=np.int64)

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")

    def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
        end = np.array([self.eos_id], np.int64)
        return [np.concatenate([np.frombuffer(t.encode(), np.uint8).astype(np.int64), end]) for t in texts]

    def token_bytes(self) -> np.ndarray:
        return np.array([1] * 256 + [0], np.int32)


class JsonTokenizer(Tokenizer):
    """Any `tokenizer.json` of the `tokenizers` library.

    Truncation and padding stored in the file are switched off, and special tokens in a text are encoded as
    text. Raises ValueError when the file cannot be read or has no end-of-text token.
    """

    def __init__(self, text: str, eos: str | None = None, origin: str = "tokenizer.json") -> None:
        from tokenizers import Tokenizer as Library

        try:
            self._library = Library.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"{origin} is not a tokenizer.json that `tokenizers` can read: {error}"
            ) from None
        self._library.no_truncation()
        self._library.no_padding()
        self._library.encode_special_tokens = True
        self.json = text
        self.vocab_size = vocab_size_of(json.loads(text))
        self.eos_token, self.eos_id = self._find_eos(eos, origin)

    def _find_eos(self, eos: str | None, origin: str) -> tuple[str, int]:
        for name in [eos] if eos is not None else EOS_NAMES:
            found = self._library.token_to_id(name)
            if found is not None:
                return name, int(found)
        special = [t.content for t in self._library.get_added_tokens_decoder().values() if t.special]
        wanted = (
            f"token {eos!r}" if eos is not None else f"end-of-text token (looked for {', '.join(EOS_NAMES)})"
        )
        raise ValueError(
            f"{origin} has no {wanted}; its special tokens: {', '.join(special) or 'none'}; "
            "name the one that ends a document with eos: TOKEN"
        )

    def encode(self, text: str) -> list[int]:
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def encode_with_ends(self, text: str) -> tuple[list[int], np.ndarray]:
        found = self._library.encode(text, add_special_tokens=False)
        ends = np.array([end for _, end in found.offsets], np.int64)
        # White space may be left out of a token's offsets, and what a normalizer adds has none.
        return list(found.ids), np.maximum.accumulate(ends)

    def decode(self, ids: list[int]) -> str:
        return str(self._library.decode(ids, skip_special_tokens=True))

    def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array([*e.ids, self.eos_id], np.int64) for e in encoded]

    def token_bytes(self) -> np.ndarray:
        sizes = np.zeros(self.vocab_size, np.int32)
        size_of = _byte_level_size if "ByteLevel" in _pre_tokenizers(self.json) else _marked_size
        for token, number in self._library.get_vocab(with_added_tokens=False).items():
            sizes[number] = size_of(token)
        for number, added in self._library.get_added_tokens_decoder().items():
            sizes[number] = 0 if added.special else len(added.content.encode())
        sizes[self.eos_id] = 0
        return sizes


def vocab_size_of(tokenizer_json: dict[str, Any]) -> int:
    """Largest id + 1 of a parsed `tokenizer.json`; with gaps, more than there are tokens."""
    vocab = tokenizer_json["model"]["vocab"]
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    return 1 + max([*ids, *(t["id"] for t in tokenizer_json.get("added_tokens", []))])


def load_tokenizer(path: Path | str, eos: str | None = None) -> Tokenizer:
    """Read a tokenizer from a `tokenizer.json`, or from a folder (token cache, saved model) that holds one.

    `eos` names the token that ends a document when it is none of the usual ones; a token cache knows its own.
    Raises ValueError.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no tokenizer at {file}; give a tokenizer.json or a folder that holds one")
    manifest = file.parent / "manifest.json"
    if eos is None and path.is_dir() and manifest.is_file():
        eos = json.loads(manifest.read_text()).get("tokenizer", {}).get("eos_token")
    return tokenizer_from_json(file.read_text(encoding="utf-8"), eos, str(file))


def tokenizer_from_json(text: str, eos: str | None = None, origin: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer a `tokenizer.json` describes; that of the byte tokenizer is recognised by its text."""
    return ByteTokenizer() if text == byte_tokenizer_json() else JsonTokenizer(text, eos, origin)


@cache
def byte_characters() -> dict[int, str]:
    """GPT-2's character for each byte: itself where printable, else the next free one from U+0100 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


@cache
def byte_tokenizer_json() -> str:
    """The byte tokenizer in the `tokenizers` library's own form: a byte-level BPE without merges."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    end = {"id": 256, "content": EOS, "single_word": False, "lstrip": False, "rstrip": False}
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**end, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {byte_characters()[b]: b for b in range(256)},
            "merges": [],
        },
    }
    return json.dumps(document, ensure_ascii=False, indent=1)


def _pre_tokenizers(tokenizer_json: str) -> set[str]:
    """Names of all pre-tokenizers and decoders in use, nested ones included."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield str(node.get("type"))
            for part in [*node.get("pretokenizers", []), *node.get("decoders", [])]:
                yield from walk(part)

    parsed = json.loads(tokenizer_json)
    return {*walk(parsed.get("pre_tokenizer")), *walk(parsed.get("decoder"))}


def _byte_level_size(token: str) -> int:
    """In a byte-level vocabulary each character of a token stands for one byte."""
    return len(token)


def _marked_size(token: str) -> int:
    """Bytes of a SentencePiece or WordPiece token: `▁` is a space, `<0xNN>` a byte, leading `##` nothing."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.removeprefix("##").replace("▁", " ").encode())
