"""Words with tags: entities in CoNLL's columns, parts of speech in CoNLL-U.

All entity tags are B-, I- and O; `scheme` says which: IOB2 begins every entity with B-, IOB1 only one that follows on
another of its type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fabric.data.labelled.conll import Sentence, read_sentences
from fabric.data.rows import Table, TaskDataError, file_of, read_table

UPOS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM",
    "VERB", "X", "_",
)  # fmt: skip


def entity_tags(types: Iterable[str]) -> tuple[str, ...]:
    """O, and of every type what begins an entity and what goes on with it."""
    return ("O", *(f"{place}-{kind}" for kind in types for place in "BI"))


def form_of(path: str) -> Literal["conll", "conllu"]:
    """A file's form by its name."""
    return "conllu" if path.endswith(".conllu") else "conll"


@dataclass(frozen=True)
class TagSet:
    """A data set of tagged words. `files`: of each split, paths below the data folder, tried in order; a split that is
    not published is not there. `hub`: repository, configuration, and the names of words and tags, which there are
    numbers in the order of `tags`."""

    name: str
    about: str
    tags: tuple[str, ...]
    form: Literal["conll", "conllu"]
    files: Mapping[str, tuple[str, ...]]
    is_entities: bool = True
    hub: tuple[str, str | None, str, str] | None = None

    def read(self, split: str, folder: Path | None) -> list[Sentence] | None:
        """The sentences of a split; None where it is not published. Raises TaskDataError: not there, or wrong."""
        if split not in self.files:
            return None
        path = file_of(self.files[split], folder)
        found = self._from_hub(split, folder) if path is None else read_sentences(path, self.form)
        known = set(self.tags)
        for sentence in found:
            if wrong := next((t for t in sentence.tags if t not in known), None):
                raise TaskDataError(
                    f"{sentence.where}: {wrong!r} is no tag of {self.name}; allowed: {', '.join(self.tags)}"
                )
        return found

    def _from_hub(self, split: str, folder: Path | None) -> list[Sentence]:
        hub = None if self.hub is None else (*self.hub[:2], split)
        rows = read_table(Table(self.files[split], hub), folder)
        assert self.hub is not None  # else it is an error above
        words, tags = self.hub[2:]
        return [
            Sentence(
                tuple(row.texts(words)), tuple(self._named(tag, row.where) for tag in row[tags]), row.where
            )
            for row in rows
        ]

    def _named(self, tag: object, where: str) -> str:
        if isinstance(tag, int):
            if not 0 <= tag < len(self.tags):
                raise TaskDataError(f"{where}: tag {tag} is none of the {len(self.tags)} of {self.name}")
            return self.tags[tag]
        return str(tag)


_ALL = (
    TagSet(
        "conll2003",
        "persons, organisations, places and others in news (Tjong Kim Sang and De Meulder 2003)",
        entity_tags(("PER", "ORG", "LOC", "MISC")),
        "conll",
        {
            "train": ("conll2003/train.txt", "conll2003/eng.train"),
            "validation": ("conll2003/valid.txt", "conll2003/eng.testa"),
            "test": ("conll2003/test.txt", "conll2003/eng.testb"),
        },
        hub=("eriktks/conll2003", None, "tokens", "ner_tags"),
    ),
    TagSet(
        "wnut17",
        "emerging and rare entities in what people write online (Derczynski et al. 2017)",
        entity_tags(("corporation", "creative-work", "group", "location", "person", "product")),
        "conll",
        {
            "train": ("wnut17/wnut17train.conll",),
            "validation": ("wnut17/emerging.dev.conll",),
            "test": ("wnut17/emerging.test.annotated",),
        },
        hub=("leondz/wnut_17", None, "tokens", "ner_tags"),
    ),
    TagSet(
        "wikigold",
        "persons, organisations, places and others in Wikipedia (Balasuriya et al. 2009)",
        entity_tags(("PER", "ORG", "LOC", "MISC")),
        "conll",
        {"test": ("wikigold/wikigold.conll.txt",)},
    ),
    TagSet(
        "ud_english_ewt",
        "universal parts of speech of English on the web (UD_English-EWT)",
        UPOS,
        "conllu",
        {
            "train": ("ud-english-ewt/en_ewt-ud-train.conllu", "ud-english-ewt/en_ewt-ud-train.third.conllu"),
            "validation": ("ud-english-ewt/en_ewt-ud-dev.conllu",),
            "test": ("ud-english-ewt/en_ewt-ud-test.conllu",),
        },
        is_entities=False,
        hub=("universal-dependencies/universal_dependencies", "en_ewt", "tokens", "upos"),
    ),
)
TAG_SETS = {s.name: s for s in _ALL}
