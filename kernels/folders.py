"""Where things that belong to the machine, not to a run, are kept. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_root() -> Path:
    """`$FABRIC_CACHE`, or `experiment-fabric` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if named := os.environ.get("FABRIC_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "experiment-fabric"
