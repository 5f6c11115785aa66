"""Where things that belong to the machine, not to a run, are kept. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path


def at_home(path: Path) -> Path:
    """The path with a leading `~` spelt out. Raises ValueError for the home of a user there is not."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{str(path)!r}: there is no such user's home folder; write the path out") from None


def default_cache_root() -> Path:
    """`$FABRIC_CACHE`, or `experiment-fabric` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if named := os.environ.get("FABRIC_CACHE"):
        return at_home(Path(named))
    return at_home(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))) / "experiment-fabric"
