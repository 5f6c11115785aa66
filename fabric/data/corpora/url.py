"""Text, JSON Lines or Parquet behind a URL that fsspec reads (`s3://`, `gs://`, `https://`): a file or a folder."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from pydantic import field_validator

from fabric.data.corpus import CorpusError, Source
from fabric.data.disk import beside, sha256_of
from fabric.data.places import Opened, filesystem, is_url, of_each, reaching
from fabric.data.rules import PROBE_BYTES, TextFiles, check_pattern, is_hidden_or_about, splits_of_names


class UrlConfig(TextFiles):
    """A file or a folder behind a URL; formats, documents and published splits are those of local files.

    Without `data.stream` its files are fetched once into `<cache_root>/corpora`; after that no network is needed, and
    a later change behind the URL changes nothing. Credentials are the environment's.
    """

    kind: Literal["url"]
    url: str
    include: str = "**"

    @field_validator("url")
    @classmethod
    def _has_scheme(cls, url: str) -> str:
        if not is_url(url):
            raise ValueError(f"{url!r} is no URL; write s3://BUCKET/FOLDER, or corpus: PATH for local text")
        return url

    @field_validator("include")
    @classmethod
    def _pattern(cls, pattern: str) -> str:
        return check_pattern(pattern)

    def resolved(self, base_dir: Path) -> Self:
        return self

    def is_here(self, cache_root: Path) -> bool:
        return self._kept(cache_root).is_dir()

    def sources(self, cache_root: Path) -> list[Source]:
        """The kept copies of its files, fetched when not there yet."""
        kept = self._kept(cache_root)
        if not kept.is_dir():
            self._fetch(kept)
        names = sorted(f.relative_to(kept).as_posix() for f in kept.rglob("*") if f.is_file())
        return self._sources({name: str(kept / name) for name in names})

    def streamed(self, cache_root: Path) -> list[Source]:
        fs, _ = filesystem(self.url)
        return self._sources({name: str(fs.unstrip_protocol(p)) for name, p in self._listed().items()})

    def _sources(self, paths: dict[str, str]) -> list[Source]:
        named = splits_of_names(self.url, list(paths)) if len(paths) > 1 else {}
        return of_each(lambda f: self.source(f[1], named.get(f[0]), partial(_head, f[1])), paths.items())

    def _listed(self) -> dict[str, str]:
        """Its files by their names below the URL, in alphabetical order, each with its name in the file system."""
        fs, root = filesystem(self.url)
        with reaching(self.url):
            if fs.isfile(root):
                return {PurePosixPath(root).name: root}
            found = fs.glob(f"{root.rstrip('/')}/{self.include}", detail=True)
            files = [path for path, about in found.items() if about["type"] == "file"]
            below = {str(PurePosixPath(path).relative_to(root)): path for path in files}
        names = sorted(n for n in below if not is_hidden_or_about(n))
        known = [n for n in names if self.is_known(n)]
        if not known:
            raise self.no_text(self.url, self.include, names)
        self.refuse_packed(self.url, names)
        return {name: below[name] for name in known}

    def _kept(self, cache_root: Path) -> Path:
        wanted: dict[str, Any] = {name: getattr(self, name) for name in ("url", "include", "format")}
        return cache_root / "corpora" / sha256_of(wanted)[:32]

    def _fetch(self, kept: Path) -> None:
        """Copy the files into a folder beside `kept`, then rename it: whole or not there."""
        fs, _ = filesystem(self.url)
        temp = beside(kept, "fetching")
        try:
            for name, path in self._listed().items():
                target = temp / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with reaching(self.url):
                    fs.get_file(path, str(target))
            try:
                os.rename(temp, kept)
            except OSError:
                if not kept.is_dir():  # else another process was first
                    raise CorpusError(f"{self.url} could not be kept at {kept}") from None
        finally:
            shutil.rmtree(temp, ignore_errors=True)


def _head(path: str) -> bytes:
    with Opened(path) as opened:
        return opened.read(0, PROBE_BYTES)
