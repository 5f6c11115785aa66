"""A data set of the Hugging Face hub (or a local data folder), through `datasets`."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from fabric.data.corpora.url import UrlConfig
from fabric.data.corpus import CorpusConfig, CorpusError, Source
from fabric.data.disk import beside, sha256_of
from fabric.data.rules import published_split
from kernels.folders import at_home


class HubConfig(CorpusConfig):
    """A data set by its hub id, one row a document (`text_field`), its published splits kept.

    The first use streams the rows into JSON Lines files under `<cache_root>/corpora`; after that no network
    is needed and a later change on the hub changes nothing. `revision` pins a commit or tag, `max_documents`
    takes the first rows of each split of a set too large to keep whole. Splits that are not train, validation
    or test (such as `unsupervised`) are not read unless named in `splits`, which then are read as training
    text.
    """

    kind: Literal["hub"]
    name: str
    subset: str | None = None
    revision: str | None = None
    text_field: str = "text"
    splits: tuple[str, ...] | None = None
    max_documents: int | None = Field(default=None, ge=1)

    def resolved(self, base_dir: Path) -> Self:
        local = base_dir / at_home(Path(self.name))
        return self.model_copy(update={"name": str(local.resolve())}) if local.is_dir() else self

    def is_here(self, cache_root: Path) -> bool:
        return self._kept(cache_root).is_dir()

    def sources(self, cache_root: Path) -> list[Source]:
        """The kept JSON Lines files, fetched when not there yet."""
        kept = self._kept(cache_root)
        if not kept.is_dir():
            self._fetch(kept)
        return [
            Source(str(f), "jsonl", text_field="text", split=None if self.splits else published_split(f.stem))
            for f in sorted(kept.glob("*.jsonl"))
        ]

    def streamed(self, cache_root: Path) -> list[Source]:
        """The Parquet files that the hub keeps of every data set, by `hf://` URLs.

        Raises CorpusError for a local folder, and for settings that need a copy.
        """
        if Path(self.name).is_dir():
            raise CorpusError(
                f"data set {self.name!r} is a local folder; to stream it, write corpus: {self.name}"
            )
        if self.revision is not None or self.max_documents is not None:
            raise CorpusError(
                f"data set {self.name!r}: a stream reads the hub's Parquet copy of the whole set; leave out "
                "revision and max_documents, or data.stream"
            )
        url = f"hf://datasets/{self.name}@refs/convert/parquet/{self.subset or 'default'}"
        found = UrlConfig(kind="url", url=url, text_field=self.text_field).streamed(cache_root)
        if self.splits is None:
            return found
        wanted = [s for s in found if any(f"/{split}/" in s.path for split in self.splits)]
        return [replace(source, split=None) for source in wanted]

    def _kept(self, cache_root: Path) -> Path:
        """Where its files are, or will be."""
        wanted: dict[str, Any] = self.model_dump(mode="json")
        if Path(self.name).is_dir():  # local data may change under its name
            files = sorted(f for f in Path(self.name).rglob("*") if f.is_file())
            wanted["files"] = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
        return cache_root / "corpora" / sha256_of(wanted)[:32]

    def _fetch(self, kept: Path) -> None:
        """Stream the wanted splits into a folder beside `kept`, then rename it: whole or not there."""
        streams = self._streams()
        temp = beside(kept, "fetching")
        temp.mkdir(parents=True)
        try:
            for split, rows in streams.items():
                with (temp / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                    for number, row in enumerate(rows):
                        if self.max_documents is not None and number >= self.max_documents:
                            break
                        file.write(json.dumps({"text": self._text(row, split, number)}) + "\n")
            try:
                os.rename(temp, kept)
            except OSError:
                if not kept.is_dir():  # else another process was first, with the same rows
                    raise
        finally:
            shutil.rmtree(temp, ignore_errors=True)

    def _streams(self) -> dict[str, Any]:
        from datasets import disable_progress_bars, load_dataset

        disable_progress_bars()
        try:
            found = load_dataset(self.name, self.subset, revision=self.revision, streaming=True)
        except Exception as error:  # datasets raises its own, OSError, ValueError and HTTP errors
            raise CorpusError(
                f"data set {self.name!r} could not be read from the Hugging Face hub "
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); "
                "check the id, its subset and the network, or give the path of local text"
            ) from None
        wanted = (
            [s for s in found if s in self.splits]
            if self.splits
            else [s for s in found if published_split(s)]
        )
        missing = [s for s in self.splits or () if s not in found]
        if missing or not wanted:
            raise CorpusError(
                f"data set {self.name!r} has no split {', '.join(missing) or 'train, validation or test'}; "
                f"it has: {', '.join(found)}; choose with splits: [...]"
            )
        return {split: found[split] for split in wanted}

    def _text(self, row: dict[str, Any], split: str, number: int) -> str:
        value = row.get(self.text_field)
        if not isinstance(value, str):
            found = ", ".join(f"{k} ({type(v).__name__})" for k, v in row.items())
            raise CorpusError(
                f"data set {self.name!r}, {split} row {number}: no text in field {self.text_field!r}; "
                f"fields found: {found}; set text_field to one that holds text"
            )
        return value
