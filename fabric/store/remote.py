"""The five operations on object storage, through fsspec: S3, Google Cloud Storage, Azure, or this process's memory.

Credentials and endpoints come from the environment, as the store's own tools read them (AWS_ACCESS_KEY_ID,
AWS_PROFILE, AWS_ENDPOINT_URL, …), on every machine that writes.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fabric.store.objects import StoreUnavailableError
from fabric.store.place import PACKAGES, Url

# S3 reads large objects in ranges side by side otherwise, and a range of another writing's bytes would go unnoticed.
WHOLE = {"s3fs": {"max_concurrency": 1}}
EXISTS = ("PreconditionFailed", "412")  # what stores say beside a FileExistsError of their library's
# Seconds between tries of what has answered before, on top of the library's own (botocore: five in some seconds).
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
_MEMORY = threading.Lock()  # fsspec's memory looks and writes in two steps


class RemoteObjects:
    """Objects below a URL. No listing is cached: what another process wrote is seen.

    Raises StoreUnavailableError: at once where the URL is wrong, after half a minute or more where it was right before.
    """

    def __init__(self, root: Url) -> None:
        self.root = root
        self._fs, self._base = _opened(root)
        self._has_answered = False

    def _path(self, key: str) -> str:
        return f"{self._base}/{key.strip('/')}".rstrip("/")

    def put(self, key: str, data: bytes) -> None:
        self._write(self._fs.pipe_file, self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only if it does not exist: `If-None-Match: *` on S3.

        An answer that was lost on the way is asked for again, and is then False though the object is ours.
        """
        return bool(self._write(self._create, self._path(key), data))

    def _create(self, path: str, data: bytes) -> bool:
        try:
            with _MEMORY if self.root.scheme == "memory" else contextlib.nullcontext():
                self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _code(error) in EXISTS:
                return False
            raise
        return True

    def get(self, key: str) -> bytes | None:
        whole = WHOLE.get(PACKAGES[self.root.scheme], {})
        try:
            data: bytes = self._ask(self._fs.cat_file, self._path(key), **whole)
        except FileNotFoundError:
            return None
        return data

    def list(self, prefix: str) -> list[str]:
        whole = self._path(prefix)
        folder, _, name = whole.rpartition("/")
        try:
            # As a prefix of names it is one request; as a folder s3fs asks three times where there is none.
            names = (
                self._ask(self._fs.find, folder, prefix=f"{name}/")
                if folder
                else self._ask(self._fs.find, whole)
            )
        except FileNotFoundError:
            return []
        return sorted(n[len(self._base) + 1 :] for n in names if n.startswith(f"{whole}/"))

    def delete(self, prefix: str) -> None:
        # A checkpoint's manifest goes first, so that a reader never meets half a checkpoint.
        keys = sorted(self.list(prefix), key=lambda key: (not key.endswith("/manifest.json"), key))
        for key in keys or [prefix]:
            with contextlib.suppress(FileNotFoundError):
                self._ask(self._fs.rm_file, self._path(key))

    def upload(self, file: Path, key: str) -> None:
        """Put a file of any size, in pieces; the object appears whole."""
        self._write(self._fs.put_file, str(file), self._path(key))

    def download(self, key: str, file: Path) -> None:
        """Get an object of any size into a file. Raises FileNotFoundError when there is none."""
        self._ask(self._fs.get_file, self._path(key), str(file))

    def _write(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._ask(operation, *arguments)
        except FileNotFoundError as error:
            raise _no_bucket(self.root) from error

    def _ask(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What the store answers, FileNotFoundError where it has no such object."""
        for wait in (*WAITS, None):
            try:
                answer = operation(*arguments, **options)
            except Exception as error:
                self._has_answered = self._has_answered or bool(_code(error))
                trouble = _trouble(self.root, error)
                if trouble is None:
                    raise
                if wait is None or not self._has_answered or trouble.errno != errno.EIO:
                    self._has_answered = False  # what is asked next is not waited for as long again
                    raise trouble from error
                time.sleep(wait)
            else:
                self._has_answered = True
                return answer
        raise AssertionError("the last try returns or raises")


def _opened(root: Url) -> tuple[Any, str]:
    """fsspec's filesystem for a URL, without caches, and the URL's path in it."""
    import fsspec  # half a second; a local sweep does without

    try:
        fs, path = fsspec.core.url_to_fs(str(root), use_listings_cache=False)
    except ImportError:
        package = PACKAGES[root.scheme]
        wanted = "'experiment-fabric[s3]'" if package == "s3fs" else package
        raise StoreUnavailableError(
            errno.ENOENT, f"{root} needs the package {package}, which is not installed: pip install {wanted}"
        ) from None
    except Exception as error:  # credentials that cannot be read
        if (trouble := _trouble(root, error)) is None:
            raise
        raise trouble from error
    return fs, str(path).rstrip("/")


def _code(error: BaseException | None) -> str:
    """The store's own word for an error (S3's `Code`), "" where it says none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def _no_bucket(root: Url) -> StoreUnavailableError:
    what = f"the bucket of {root} does not exist: create it, or choose another URL"
    return StoreUnavailableError(errno.ENOENT, what)


def _trouble(root: Url, error: Exception) -> StoreUnavailableError | None:
    """What a library says, as one sentence (EIO: it may pass); None where it is an answer, or a mistake of ours."""
    if isinstance(error, FileNotFoundError):
        return _no_bucket(root) if _code(error) == "NoSuchBucket" else None
    # Libraries raise classes of their own; a built-in one that is no OSError comes from our side.
    if type(error).__module__ == "builtins" and not isinstance(error, OSError):
        return None
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
        where = (
            " (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)" if root.scheme == "s3" else ""
        )
        what = (
            f"{root} refuses access ({said}): give credentials that may list, read, write and delete there, in the "
            f"environment of every machine that writes{where}"
        )
        return StoreUnavailableError(errno.EACCES, what)
    what = f"{root} cannot be reached ({said}). Nothing recorded is lost; when it answers the same command goes on"
    return StoreUnavailableError(errno.EIO, what)
