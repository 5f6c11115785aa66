"""A model that is measured, with what it takes to ask it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric.trained import Trained


@dataclass(frozen=True)
class Subject:
    """A causal model in evaluation mode, the encoding of its texts, and the id that stands before an empty context.

    Only `model` needs the weights; they are read when it is first asked for.
    """

    trained: Trained
    first_id: int
    precision: str = "fp32"

    @classmethod
    def of(cls, trained: Trained, precision: str = "fp32") -> Subject:
        """What `find_trained` found; texts begin as its own tokenizer begins them."""
        theirs = trained.hf_tokenizer
        bos = None if theirs is None else theirs.bos_token_id
        if bos is None and trained.tokenizer is not None:
            bos = trained.tokenizer.eos_id
        return cls(trained, 0 if bos is None else bos, precision)

    @property
    def model(self) -> Any:
        """Raises ValueError where its weights cannot be read."""
        return self.trained.model

    @property
    def max_seq_len(self) -> int:
        return self.trained.config.max_seq_len

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with what its tokenizer puts before it."""
        return self.trained.prompt_ids(text)
