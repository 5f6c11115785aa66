"""Labelled files of one's own: which file is which split, in the place of a published data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from fabric.data.corpus import find_path
from models.parts import Config


class OwnFiles(Config):
    """`train` and `test`, and `validation` where there is one (else it is cut out of `train`); or `all`, one file that
    is divided into the three. A path alone is `all`."""

    train: Path | None = None
    validation: Path | None = None
    test: Path | None = None
    all: Path | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        splits = [name for name in ("train", "validation", "test") if getattr(self, name) is not None]
        if (self.all is not None and not splits) or (self.all is None and {"train", "test"} <= set(splits)):
            return self
        given = ", ".join([*splits, *(["all"] if self.all is not None else [])]) or "nothing"
        raise ValueError(
            f"files has {given}; give train and test (and validation, or it is cut out of train), or one file to be "
            "divided: all"
        )

    @property
    def published(self) -> Mapping[str, tuple[str, ...]]:
        """The file of each split there is; one that is divided stands as the test split, as where nothing else is
        published."""
        if self.all is not None:
            return {"test": (str(self.all),)}
        given = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: (str(path),) for name, path in given.items() if path is not None}

    def resolved(self, base_dir: Path) -> Self:
        """With absolute paths, of files that exist."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        found = {name: find_path(path, base_dir) for name, path in given.items() if path is not None}
        if folder := next((path for path in found.values() if path.is_dir()), None):
            raise ValueError(f"{folder} is a folder; give one file a split (put its files together)")
        return self.model_copy(update=found)


def read_files(value: Any) -> Any:
    """A path alone is one file that is divided."""
    return {"all": value} if isinstance(value, str | Path) else value
