"""Sample quality: texts drawn from the model, how varied they are, and how likely the model finds them.

distinct-n and repetition as `samples.diversity` has them, at the number of samples there are (of more samples a smaller
share of n-grams is distinct, so compare equal numbers), with intervals by leaving one sample out (`jackknife`).
Self-perplexity: exp of the mean negative log-likelihood, at temperature 1, of the drawn tokens; it is low for
repetitive texts and says nothing alone. The texts are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from fabric.data.rows import TaskDataError
from fabric.evaluate.jackknife import distinct, mean_where
from fabric.evaluate.measures import LeaveOneOut, Measure, Ratio
from fabric.evaluate.samples import ngrams
from fabric.evaluate.task import Asked, Outcome, Ran, Task

if TYPE_CHECKING:
    from fabric.evaluate.subject import Subject


@dataclass(frozen=True)
class Prepared:
    """The ids that every sample continues, how many samples, what they are drawn by."""

    ids: list[int]
    n: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class SampleTask(Task):
    """`n` samples of up to `tokens` tokens (they end at the end of text) that continue `prompt`."""

    KIND: ClassVar[str] = "samples"
    SETTINGS: ClassVar[tuple[str, ...]] = ("n", "tokens", "temperature", "top_p", "prompt")

    n: Annotated[int, Field(ge=1)] = 32
    tokens: Annotated[int, Field(ge=4)] = 128
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    prompt: str = ""

    def load(self, asked: Asked) -> list[Asked]:
        return [asked]

    def prepare(self, items: Sequence[Asked], subject: Subject) -> Prepared:
        """Raises TaskDataError where prompt and tokens are more than the model takes."""
        (asked,) = items
        ids = subject.encode(self.prompt) if self.prompt else [subject.first_id]
        if len(ids) + self.tokens > subject.max_seq_len:
            raise TaskDataError(
                f"{self.name}: {len(ids)} tokens of prompt and {self.tokens} new ones, the model takes "
                f"{subject.max_seq_len}; set tokens lower"
            )
        return Prepared(ids, self.n if asked.limit is None else min(self.n, asked.limit), asked.seed)

    def run(self, prepared: Prepared, subject: Subject) -> Ran:
        """Every sample: {text, ids, nats}."""
        from fabric.evaluate.decoding import Drawing, continuations
        from fabric.evaluate.likelihood import Request, likelihoods

        tokenizer = subject.trained.tokenizer
        found = continuations(
            subject.model,
            [prepared.ids] * prepared.n,
            self.tokens,
            lambda new: new[-1] == tokenizer.eos_id,
            Drawing(self.temperature, self.top_p, prepared.seed),
            precision=subject.precision,
        )
        asked = [Request(tuple(prepared.ids), tuple(ids)) for ids in found]
        likely = likelihoods(subject.model, asked, precision=subject.precision)
        return Ran(
            [
                {"text": tokenizer.decode(ids), "ids": ids, "nats": -x.nats}
                for ids, x in zip(found, likely, strict=True)
            ]
        )

    @property
    def measures(self) -> dict[str, Measure]:
        return {
            "self_perplexity": Ratio(lambda o: o["nats"], lambda o: len(o["ids"]), np.exp, better=None),
            **{f"distinct_{n}": LeaveOneOut(_distinct(n)) for n in (1, 2, 3)},
            "repetition_4": LeaveOneOut(_repetition, better="lower"),
        }


def _distinct(n: int) -> Callable[[Sequence[Outcome]], tuple[float, np.ndarray]]:
    return lambda outcomes: distinct([o["ids"] for o in outcomes], n)


def _repetition(outcomes: Sequence[Outcome]) -> tuple[float, np.ndarray]:
    grams = [ngrams(o["ids"], 4) for o in outcomes]
    return mean_where([1 - len(set(g)) / len(g) if g else None for g in grams])
