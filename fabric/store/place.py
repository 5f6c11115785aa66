"""Where things are kept: a local folder (a Path), or a folder of an object store (a Url)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fabric.paths import real_path
from kernels.folders import default_cache_root

# What fsspec needs for each kind of object store; all of them can write an object only where there is none.
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "memory": "fsspec",  # of this process alone
}


@dataclass(frozen=True)
class Url:
    """A folder of an object store, `scheme://bucket/prefix`; name, parent and `/` are a Path's."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text}/{name}")

    @property
    def scheme(self) -> str:
        return self.text.partition("://")[0]

    @property
    def name(self) -> str:
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> Url:
        """The folder above; a bucket's is the bucket."""
        above = self.text.rpartition("/")[0]
        return self if above.endswith("/") else Url(above)


Place = Path | Url


def is_url(given: object) -> bool:
    """Whether what a user gave names an object store. Raises ValueError for a Path made of a URL, which is none."""
    if isinstance(given, Path) and given.parts[:1] in {(f"{scheme}:",) for scheme in PACKAGES}:
        raise ValueError(f"Path({str(given)!r}): a Path cannot hold a URL; give it as text")
    return isinstance(given, Url) or "://" in str(given)


def located(given: str | Path | Url) -> Place:
    """What a user gave as an absolute path or a Url.

    Raises ValueError for what is no path, a URL of a kind that cannot keep records, or one without a bucket.
    """
    if not is_url(given):
        return real_path(Path(str(given)))
    scheme, _, rest = str(given).partition("://")
    if scheme == "file":
        path = rest.removeprefix("localhost")
        if not path.startswith("/"):
            raise ValueError(
                f"{given}: file:// takes an absolute path (file:///…); write {rest} for a folder here"
            )
        return real_path(Path(path))
    if scheme not in PACKAGES:
        allowed = ", ".join(f"{name}://" for name in PACKAGES)
        raise ValueError(f"{given}: records are kept in a folder, or at {allowed}; choose one of these")
    if not (rest := rest.strip("/")):
        raise ValueError(f"{given} names no bucket; write {scheme}://BUCKET/PREFIX")
    return Url(f"{scheme}://{rest}")


def local(given: str | Path, what: str) -> Path:
    """A local path as it was given. Raises ValueError for a URL: `what` (an option) writes local files only."""
    if is_url(given):
        raise ValueError(
            f"{what} {given}: only a local path can be written here; copy it to the URL afterwards"
        )
    return Path(given)


def cache_of(out: Place) -> Path:
    """Where the caches of what is kept at `out` are: in it, or, where it is no folder, in the user's own cache."""
    return out / ".cache" if isinstance(out, Path) else default_cache_root()
