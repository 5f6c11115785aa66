"""Paths as users give them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from kernels.folders import at_home


def real_path(path: Path) -> Path:
    """The absolute path, its links followed. Raises ValueError for what is no path, and for links in a circle."""
    shown = repr(str(path)) if len(str(path)) <= 200 else f"{str(path)[:197]!r}…"
    try:
        found = at_home(path).resolve()
        found.exists()
    except RuntimeError:
        raise ValueError(
            f"{shown}: its links lead in a circle; give the file or folder that is meant"
        ) from None
    except OSError as error:
        raise ValueError(f"{shown} cannot be looked at: {error.strerror}; give another path") from None
    except ValueError as error:  # a NUL, or nobody's home
        raise ValueError(f"{shown} is no path: {error}") from None
    return found


_ELSEWHERE: ContextVar[bool] = ContextVar("elsewhere", default=False)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Paths are another machine's while the block runs: a job is read here that is to run there."""
    token = _ELSEWHERE.set(True)
    try:
        yield
    finally:
        _ELSEWHERE.reset(token)


def there(path: Path) -> Path | None:
    """A path as it is on the machine the job will run on; None where that is this one, and it can be looked at.

    Raises ValueError for a relative path, which would be another one there.
    """
    if not _ELSEWHERE.get():
        return None
    if not path.is_absolute():
        raise ValueError(
            f"{str(path)!r} is relative, and nothing but the job file travels: give the absolute path that it has on "
            "the cluster's nodes, or a URL"
        )
    return path


def check_shared(out: str) -> None:
    """Raises ValueError for records of a sweep on a cluster in a folder that would go with the job's own."""
    if "://" not in out and not Path(out).is_absolute():
        raise ValueError(
            f"--out {out}: on the cluster a relative folder is lost with the job's own; give an absolute one that all "
            "nodes share, or an s3:// URL"
        )
