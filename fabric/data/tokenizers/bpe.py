"""A byte-level BPE trained on the corpus's own training split (Sennrich et al., arXiv 1508.07909)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fabric.data.tokenizer import EOS, Tokenizer, TokenizerConfig, tokenizer_from_json


class BpeConfig(TokenizerConfig):
    """Byte-level BPE of exactly `vocab_size` ids, EOS (id 0) and the 256 bytes among them.

    A small corpus may run out of pairs that occur `min_frequency` times; the rest is then filled with ids
    `<|unused_i|>` that no text yields, so the size of the model never depends on the training. Of a corpus
    with more than `max_train_bytes` of training text, every k-th document is read.
    """

    kind: Literal["bpe"]
    vocab_size: int = Field(ge=257, le=1 << 20)
    min_frequency: int = Field(default=2, ge=1)
    max_train_bytes: int = Field(default=100_000_000, ge=1)

    def vocab_size_in(self, cache_root: Path) -> int:
        return self.vocab_size

    def identity(self, cache_root: Path) -> dict[str, Any]:
        return {**self.model_dump(mode="json"), "revision": self.REVISION}

    def build(self, train_texts: Callable[[], Iterable[str]], cache_root: Path) -> Tokenizer:
        from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Library

        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=[EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        library.train_from_iterator(train_texts(), trainer)
        missing = self.vocab_size - library.get_vocab_size()
        library.add_tokens(
            [AddedToken(f"<|unused_{i}|>", special=True, normalized=False) for i in range(missing)]
        )
        return tokenizer_from_json(library.to_str(), EOS)
