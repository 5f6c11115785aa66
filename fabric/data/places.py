"""Files of a corpus wherever they lie: local paths, or URLs through fsspec, read by ranges of bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

from fabric.data.corpus import CorpusError, reading

END_BYTES = 1 << 16
LOOK_AT_ONCE = 16  # files of which something is read at a time: behind a URL each takes its time
T = TypeVar("T")
R = TypeVar("R")


def is_url(path: str) -> bool:
    """Whether a path is fsspec's to read (`s3://…`, `memory://…`)."""
    return "://" in path


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the name in it.

    Raises ValueError for an unknown scheme, and where the scheme's package is missing.
    """
    from fsspec.core import url_to_fs

    try:
        fs, name = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise CorpusError(
            f"{url} cannot be opened: {error} (fsspec reads s3://, gs://, hf://, https:// and others, "
            "each with a package of its own)"
        ) from None
    return fs, str(name)


@contextmanager
def reaching(path: str) -> Iterator[None]:
    """Errors of reading name the file, as a `CorpusError`: of a URL's file system any error may come."""
    with reading(path):
        try:
            yield
        except (CorpusError, OSError):
            raise
        except Exception as error:
            if not is_url(path):
                raise
            raise CorpusError(
                f"{path} cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0]}; check the "
                "address and the credentials in the environment"
            ) from None


def of_each(look: Callable[[T], R], files: Iterable[T]) -> list[R]:
    """What `look` says of each file, several at a time, in order."""
    with ThreadPoolExecutor(LOOK_AT_ONCE) as pool:
        return list(pool.map(look, files))


class Opened:
    """One file, open for reading: its `size`, and ranges of its bytes. `file` is what pyarrow reads."""

    def __init__(self, path: str) -> None:
        self.path = path
        with reaching(path):
            if is_url(path):
                fs, name = filesystem(path)
                self.file: BinaryIO = fs.open(name, "rb")
            else:
                self.file = Path(path).open("rb")  # noqa: SIM115 (closed by `__exit__`)
            self.size = int(self.file.seek(0, 2))

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end); fewer at the file's end."""
        with reaching(self.path):
            self.file.seek(start)
            return self.file.read(max(0, end - start))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def ends_sha256(path: str) -> tuple[int, str]:
    """A file's size, and the hash of its first and last 64 KiB: what a text too large to read is known by."""
    with Opened(path) as opened:
        ends = opened.read(0, END_BYTES) + opened.read(max(END_BYTES, opened.size - END_BYTES), opened.size)
        return opened.size, hashlib.sha256(ends).hexdigest()
