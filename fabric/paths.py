"""Paths as users give them."""

from __future__ import annotations

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
