"""How likely a text is: perplexity a token and a word, bits per byte and per character, over windows of a fixed length.

Windows are lm-evaluation-harness's rolling ones: the first token follows on the id that texts begin with, every token
is scored once, a window of W tokens scores the `stride` last ones with W - stride + 1 tokens of context before the
first of them (disjoint: stride W), and the last window reaches back to be whole. Perplexity a token compares models of
one tokenizer only; bits per byte compare any. Intervals are a bootstrap over windows, as if they were independent.

Shapes: B windows of a batch, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field

from fabric.data.rows import Table, TaskDataError, read_table
from fabric.evaluate.likelihood import TOKENS
from fabric.evaluate.measures import Measure, Ratio
from fabric.evaluate.task import Asked, Ran, Task
from fabric.paths import real_path
from fabric.train.loss import nll_per_token
from fabric.train.step import autocast

if TYPE_CHECKING:
    from fabric.evaluate.subject import Subject

NOTHING = -100  # a target that is not scored
WINDOW = 1024  # tokens, where none is asked for
MORE_BYTES = (0x80, 0x800, 0x10000)  # from each of these code points on, UTF-8 takes one byte more


class Text(NamedTuple):
    """A text, where it was read, and how many of its windows are scored (None: all)."""

    text: str
    where: str
    limit: int | None


class Window(NamedTuple):
    """Ids of a window (int64 [T + 1]), of which the last `n_scored` are predicted (the first id never is)."""

    ids: np.ndarray
    n_scored: int


class Size(NamedTuple):
    """What a window's scored tokens stand for. A character, and a word, is counted where it ends or begins, once."""

    n_bytes: int
    n_chars: int
    n_words: int


@dataclass(frozen=True)
class Prepared:
    """Windows and their sizes, and their length and stride."""

    windows: list[Window]
    sizes: list[Size]
    length: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """A text to be predicted. Settings: `window` tokens at a time (None: 1,024, or as many as the model takes), of
    which the last `stride` are scored (None: all); `path`: a text file of the user's own, UTF-8."""

    KIND: ClassVar[str] = "text"
    REVISION: ClassVar[int] = 2
    SETTINGS: ClassVar[tuple[str, ...]] = ("window", "stride", "path")

    files: tuple[str, ...] = ()
    hub: tuple[str, str | None, str] | None = None
    window: Annotated[int, Field(ge=2)] | None = None
    stride: Annotated[int, Field(ge=1)] | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.stride is not None and self.stride > (self.window or WINDOW):
            raise ValueError(
                f"stride={self.stride} is more than window={self.window or WINDOW}: tokens would be left out"
            )
        if self.path is not None and self.files:
            raise ValueError("it has a text of its own; give a path to the task named text")

    def load(self, asked: Asked) -> list[Text]:
        """Raises TaskDataError where the text is missing, empty, or not UTF-8."""
        text, where = self._read(asked.folder)
        if not text:
            raise TaskDataError(f"{where} is empty")
        return [Text(text, where, asked.limit)]

    def _read(self, folder: Path | None) -> tuple[str, str]:
        if self.path is not None or not self.files:
            if self.path is None:
                raise TaskDataError("task text reads a file of yours: name it, text:path=FILE")
            return _text_of(real_path(Path(self.path).expanduser()))
        places = [] if folder is None else [real_path(folder / name) for name in self.files]
        for place in places:
            if place.is_file():
                return _text_of(place)
        rows = read_table(
            Table(self.files, self.hub), folder
        )  # the hub's, or the error that names the places
        return "".join(row.text("text") for row in rows), rows[0].where

    def prepare(self, items: Sequence[Text], subject: Subject) -> Prepared:
        """The text's windows in the subject's tokens. Raises TaskDataError for windows that do not fit the model."""
        (item,) = items
        length, stride = self._lengths(subject.max_seq_len)
        ids, ends = subject.trained.tokenizer.encode_with_ends(item.text)
        if not ids:
            raise TaskDataError(f"{item.where}: the model's tokenizer makes no token of it")
        windows = list(islice(rolling(ids, subject.first_id, length, stride), item.limit))
        return Prepared(windows, sizes_of(item.text, ends, [w.n_scored for w in windows]), length, stride)

    def _lengths(self, max_seq_len: int) -> tuple[int, int]:
        length = min(WINDOW, max_seq_len) if self.window is None else self.window
        stride = length if self.stride is None else self.stride
        for name, asked, most in (("window", length, max_seq_len), ("stride", stride, length)):
            if asked > most:
                raise TaskDataError(
                    f"{self.name}: {name}={asked}, the model takes {max_seq_len} tokens (max_seq_len); "
                    f"ask for at most {most}"
                )
        return length, stride

    def run(self, prepared: Prepared, subject: Subject, *, rows: int | None = None) -> Ran:
        """Every window's {nats, n_tokens, n_bytes, n_chars, n_words}."""
        p = prepared
        outcomes = [
            {"nats": nats, "n_tokens": window.n_scored, **size._asdict()}
            for nats, window, size in zip(
                window_nats(subject, p.windows, rows), p.windows, p.sizes, strict=True
            )
        ]
        return Ran(outcomes, (f"windows of {p.length} tokens, stride {p.stride}",))

    @property
    def measures(self) -> dict[str, Measure]:
        def nats(o: Any) -> float:
            return float(o["nats"])

        def bits(o: Any) -> float:
            return float(o["nats"]) / float(np.log(2))

        return {
            "perplexity": Ratio(nats, lambda o: o["n_tokens"], np.exp),
            "loss": Ratio(nats, lambda o: o["n_tokens"]),
            "bits_per_byte": Ratio(bits, lambda o: o["n_bytes"]),
            "bits_per_character": Ratio(bits, lambda o: o["n_chars"]),
            "word_perplexity": Ratio(nats, lambda o: o["n_words"], np.exp),
        }


def rolling(ids: Sequence[int], first_id: int, length: int, stride: int) -> Iterator[Window]:
    """Windows that score every id once, in order: at most `length` ids go in, the first has `first_id` before it.

    They are views of one array: overlapping ones take no memory of their own.
    """
    whole = np.array([first_id, *ids], np.int64)
    done = min(length, len(ids))
    yield Window(whole[: done + 1], done)
    while done < len(ids):
        n = min(stride, len(ids) - done)
        done += n
        yield Window(whole[done - length : done + 1], n)


def sizes_of(text: str, ends: np.ndarray, n_tokens: Sequence[int]) -> list[Size]:
    """What runs of tokens, one after the other, stand for; `ends`: how many characters have ended with each token.

    Words are lm-evaluation-harness's: one more than there are runs of white space; a run counts where it begins. Of a
    whole text the sums are exact, whatever its tokenizer leaves out at its end.
    """
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    n_bytes = np.concatenate([[0], np.cumsum(1 + sum((code_points >= x).astype(int) for x in MORE_BYTES))])
    breaks = np.array([m.start() for m in re.finditer(r"\s+", text)], np.int64)
    at = [0, *(int(ends[i - 1]) for i in accumulate(n_tokens))]
    if sum(n_tokens) == len(ends):
        at[-1] = len(text)
    words = [0, *(1 + int(n) for n in np.searchsorted(breaks, at[1:]))]
    return [
        Size(int(n_bytes[b] - n_bytes[a]), b - a, after - before)
        for (a, b), (before, after) in zip(pairwise(at), pairwise(words))
    ]


@torch.inference_mode()
def window_nats(subject: Subject, windows: Sequence[Window], rows: int | None = None) -> list[float]:
    """Each window's negative log-likelihood; those of one length go through the model together, `rows` at a time."""
    found = [0.0] * len(windows)
    by_length: dict[int, list[int]] = {}
    for i, window in enumerate(windows):
        by_length.setdefault(len(window.ids), []).append(i)
    model = subject.model
    device = model.lm_head_weight.device
    for n_ids, mine in by_length.items():
        at_once = rows or max(1, TOKENS // n_ids)
        for start in range(0, len(mine), at_once):
            batch = mine[start : start + at_once]
            ids_BT1 = torch.from_numpy(np.stack([windows[i].ids for i in batch])).to(device)
            targets_BT = ids_BT1[:, 1:].clone()
            for row, i in enumerate(batch):
                targets_BT[row, : targets_BT.shape[1] - windows[i].n_scored] = NOTHING
            with autocast(device.type, subject.precision):
                nll_BT = nll_per_token(model, ids_BT1[:, :-1], targets_BT)
            for i, x in zip(batch, nll_BT.double().sum(1).tolist(), strict=True):
                found[i] = x
    return found


def _text_of(path: Path) -> tuple[str, str]:
    try:
        return path.read_bytes().decode("utf-8-sig"), str(path)
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{path} is not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise TaskDataError(f"{path} cannot be read: {error.strerror}") from None
