"""What examples made of published labelled data share: which data set, how much of it, and its splits."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import BeforeValidator, Field, field_validator, model_validator

from fabric.data.disk import remembered_sha256
from fabric.data.examples.base import PADDING, UNASKED, Built, ExamplesConfig, Rows
from fabric.data.labelled.own import OwnFiles, read_files
from fabric.data.labelled.splits import Divided, divided, sample
from fabric.data.rows import file_of
from fabric.data.tokenizer import Tokenizer
from fabric.job.units import Count
from models.parts import meant


class LabelledExamples(ExamplesConfig):
    """Base of examples read from a data set. `dataset`: its name; `folder`: what holds its files, in a folder of its
    own (by default $FABRIC_DATA; without either the hub). Or `files`: one's own (`fabric.data.labelled.own`), with
    the fields that say what is in them (`OWN`).

    `n_train`, `n_validation`, `n_test`: so many of a split's items, by a hash of (`split_seed`, item); all unless said.
    Splits that are not published are cut out of one that is, by `split_seed` (`fabric.data.labelled.splits`).
    """

    dataset: str | None = None
    folder: Path | None = None
    files: Annotated[OwnFiles | None, BeforeValidator(read_files)] = None
    n_train: Count | None = Field(default=None, ge=1)
    n_validation: Count | None = Field(default=None, ge=1)
    n_test: Count | None = Field(default=None, ge=1)
    split_seed: int = 0

    READS_TEXT: ClassVar[bool] = True
    SETS: ClassVar[Mapping[str, Any]]
    OWN: ClassVar[tuple[str, ...]] = ()

    @field_validator("dataset")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is None or name in cls.SETS:
            return name
        hint = meant(name, cls.SETS)
        raise ValueError(f"no data set is called {name!r}{hint} (allowed: {', '.join(cls.SETS)})")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset is None) == (self.files is None):
            raise ValueError(
                f"give dataset (one of {', '.join(self.SETS)}) or files of your own"
                + (", not both" if self.files else "")
            )
        if self.files is None:
            fields = type(self).model_fields
            described = [name for name in self.OWN if getattr(self, name) != fields[name].default]
            if described:
                raise ValueError(
                    f"{', '.join(described)}: of {self.dataset} this is known; it describes files of your own"
                )
            return self
        if self.folder is not None:
            raise ValueError("folder: it is for published data sets; write the paths of files whole")
        self.check_own()
        return self

    def check_own(self) -> None:
        """Raise ValueError where what is said of one's own files is not enough, or does not fit together."""

    @property
    def root(self) -> Path | None:
        """What the paths of files are below; None: they come from the hub."""
        return self.folder if self.files is None else Path("/")

    @property
    def n_ids(self) -> int:
        raise AssertionError("its ids are a tokenizer's")

    @property
    @abstractmethod
    def places(self) -> Sequence[tuple[str, ...]]:
        """Of each split where its file may be below the folder, tried in order."""

    def present(self) -> list[Path]:
        """Its files in the folder, of all splits that are there. Empty: they come from the hub."""
        return [f for some in self.places if (f := file_of(some, self.root)) and f.is_file()]

    @abstractmethod
    def read(self) -> Divided:
        """The items of every split. Raises TaskDataError where data is missing or not as it should be."""

    @abstractmethod
    def name_of(self, item: Any) -> str:
        """What tells an item from others: its order among them goes by a hash of it."""

    def content_of(self, item: Any) -> str:
        """What makes an item the same as one of another file."""
        return self.name_of(item)

    def resolved(self, base_dir: Path) -> Self:
        """With the folder that holds it, which is absolute."""
        found = super().resolved(base_dir)
        if found.files is not None:
            return found.model_copy(update={"files": found.files.resolved(base_dir)})
        given = os.environ.get("FABRIC_DATA")
        if found.folder is not None or not given:
            return found
        return found.model_copy(update={"folder": Path(given).absolute()})

    def identity(self, cache_root: Path) -> dict[str, Any]:
        files = self.present()
        body = self.model_dump(mode="json", exclude={"folder", "files"}, exclude_defaults=True)
        content = [remembered_sha256(f, cache_root) for f in files] if files else "hub"
        splits = {"splits": list(self.files.published)} if self.files else {}
        return {**body, **splits, "kind": self.kind, "revision": self.REVISION, "content": content}

    def items(self, split: str) -> tuple[list[Any], tuple[str, ...]]:
        """The items of a split that are read, and what is to be said of them."""
        found = _read(self, tuple((f, f.stat().st_mtime_ns, f.stat().st_size) for f in self.present()))
        n = {"train": self.n_train, "validation": self.n_validation, "test": self.n_test}[split]
        every = found.items[split]
        chosen = sample(every, n, self.split_seed, self.name_of)
        said = (f"{len(chosen)} of {len(every)} {split} items",) if len(chosen) < len(every) else ()
        if n is not None and n > len(every):
            said = (f"n_{split}={n} was asked for, and there are {len(every)}",)
        return chosen, (*found.remarks, *said, *self._seen(split, chosen))

    def _seen(self, split: str, chosen: Sequence[Any]) -> tuple[str, ...]:
        """Published splits may share items: whoever learned these by heart answers them."""
        if split == "train":
            return ()
        return self.trained_on(self, split, chosen)

    def trained_on(self, other: Self, split: str, chosen: Sequence[Any]) -> tuple[str, ...]:
        """What is to be said of items of a split that other examples trained on."""
        trained = {other.content_of(item) for item in other.items("train")[0]}
        n = sum(self.content_of(item) in trained for item in chosen)
        return (f"{n} of {len(chosen)} {split} items are training items too",) if n else ()

    def texts(self) -> Iterator[str]:
        """The training split's texts."""
        return (text for item in self.items("train")[0] for text in self.texts_of(item))

    @abstractmethod
    def texts_of(self, item: Any) -> Sequence[str]:
        """The texts of an item."""

    def build(self, split: str, seq_len: int, tokenizer: Tokenizer | None) -> Rows:
        found = self.built(split, seq_len, tokenizer)
        return found.ids_NT, found.targets_NT

    @abstractmethod
    def built(self, split: str, seq_len: int, tokenizer: Tokenizer | None) -> Built: ...


@lru_cache(maxsize=4)
def _read(examples: LabelledExamples, files: tuple[tuple[Path, int, int], ...]) -> Divided:
    """Files are read once for the three splits, and again when they have changed (path, time, size)."""
    return examples.read()


def split_up(
    published: dict[str, list[Any] | None], group: Callable[[Any], str], examples: LabelledExamples
) -> Divided:
    """The splits of what is published. Raises ValueError naming the data set where it cannot be divided."""
    try:
        return divided({k: v for k, v in published.items() if v is not None}, group, examples.split_seed)
    except ValueError as error:
        raise ValueError(f"examples {examples.kind}: {examples.dataset or 'files'}: {error}") from None


def padded(rows: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], seq_len: int) -> Rows:
    """ids_NT and targets_NT of rows of any length up to `seq_len`."""
    ids_NT = np.full((len(rows), seq_len), PADDING, np.int32)
    targets_NT = np.full((len(rows), seq_len), UNASKED, np.int32)
    for i, (row, asked) in enumerate(zip(rows, targets, strict=True)):
        ids_NT[i, : len(row)], targets_NT[i, : len(row)] = row, asked
    return ids_NT, targets_NT
