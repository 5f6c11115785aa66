"""Words with tags: entities (CoNLL's columns) and parts of speech (CoNLL-U), to fine-tune a model on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from fabric.data.corpus import SPLITS
from fabric.data.examples.base import UNASKED, Asks, Built
from fabric.data.examples.labelled import LabelledExamples, padded, split_up
from fabric.data.labelled.conll import Sentence
from fabric.data.labelled.splits import Divided
from fabric.data.labelled.tags import TAG_SETS, UPOS, TagSet, entity_tags, form_of
from fabric.data.tokenizer import Tokenizer


class TaggedWords(LabelledExamples):
    """A row is a sentence, and at one token of every word the word's tag is asked.

    `asked_at` "last": a word's last token, which a decoder asks with the whole word read; "first": as BERT is
    fine-tuned (arXiv 1810.04805 §5.3). Words are encoded one by one, all but the first with a space before them.
    A sentence that is too long is cut between words into several rows; a word that is longer than a row is cut.

    Files of one's own are CoNLL's columns (the word first, the tag last) or CoNLL-U (`.conllu`); `entities` names the
    types of entities, or `tags` all tags there are (of CoNLL-U unless said: the universal parts of speech).
    """

    kind: Literal["tagged_words"]
    asked_at: Literal["first", "last"] = "last"
    entities: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None

    SETS: ClassVar[Mapping[str, Any]] = TAG_SETS
    OWN: ClassVar[tuple[str, ...]] = ("entities", "tags")

    def check_own(self) -> None:
        assert self.files is not None
        files = [path for paths in self.files.published.values() for path in paths]
        if len({form_of(path) for path in files}) > 1:
            raise ValueError(f"files: some are CoNLL-U (.conllu) and some are not: {', '.join(files)}")
        if self.entities is not None and self.tags is not None:
            raise ValueError("give entities (their types) or tags, not both")
        if self.entities is None and self.tags is None and form_of(files[0]) == "conll":
            raise ValueError("say what is tagged in your files: entities: [TYPE, …], or tags: [TAG, …]")
        wrong = [e for e in self.entities or () if not e or e[:2] in ("B-", "I-") or e == "O"]
        if wrong:
            raise ValueError(
                f"entities: {wrong[0]!r} is no type; write the types alone, without B- and I-: [PER, LOC]"
            )
        for name, given in (("entities", self.entities), ("tags", self.tags)):
            if given is not None and not (given and len(set(given)) == len(given)):
                raise ValueError(f"{name}: {list(given)} must be one or more, each once")

    @property
    def about(self) -> TagSet:
        """The data set."""
        if self.dataset is not None:
            return TAG_SETS[self.dataset]
        assert self.files is not None
        tags = self.tags or (entity_tags(self.entities) if self.entities else UPOS)
        files = self.files.published
        return TagSet(
            "these files",
            "",
            tags,
            form_of(files["test"][0]),
            files,
            is_entities=all(tag == "O" or tag[:2] in ("B-", "I-") for tag in tags),
        )

    @property
    def asks(self) -> Asks:
        return "tags"

    @property
    def n_answers(self) -> int:
        return len(self.about.tags)

    @property
    def places(self) -> Sequence[tuple[str, ...]]:
        return [self.about.files.get(split, ()) for split in SPLITS]

    def read(self) -> Divided:
        published: dict[str, list[Any] | None] = {s: self.about.read(s, self.root) for s in SPLITS}
        return split_up(published, self.name_of, self)

    def name_of(self, item: Sentence) -> str:
        return " ".join(item.words)

    def texts_of(self, item: Sentence) -> Sequence[str]:
        return (" ".join(item.words),)

    def built(self, split: str, seq_len: int, tokenizer: Tokenizer | None) -> Built:
        assert tokenizer is not None
        sentences, remarks = self.items(split)
        number = {tag: i for i, tag in enumerate(self.about.tags)}
        rows, targets, items = [], [], []
        for which, sentence in enumerate(sentences):
            pieces = [tokenizer.encode(" " * (i > 0) + w)[:seq_len] for i, w in enumerate(sentence.words)]
            for begin, end in _runs([len(p) for p in pieces], seq_len):
                rows.append([i for piece in pieces[begin:end] for i in piece])
                targets.append(
                    [
                        t
                        for piece, tag in zip(pieces[begin:end], sentence.tags[begin:end], strict=True)
                        for t in self._asked(len(piece), number[tag])
                    ]
                )
                items.append({"owner": which})
        said = (
            (f"{len(rows)} rows of {len(sentences)} {split} sentences",) if len(rows) > len(sentences) else ()
        )
        return Built(*padded(rows, targets, seq_len), items, remarks + said)

    def _asked(self, n: int, tag: int) -> list[int]:
        """The targets of a word of `n` tokens."""
        rest = [UNASKED] * (n - 1)
        return [*rest, tag] if self.asked_at == "last" else [tag, *rest]


def _runs(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Begin and end of runs, one after the other, whose lengths add up to `most` at most."""
    begin = total = 0
    for i, n in enumerate(lengths):
        if total + n > most:
            yield begin, i
            begin, total = i, 0
        total += n
    yield begin, len(lengths)
