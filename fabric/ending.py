"""How the command line ends and what it says then: mistakes of the user's, warnings, a reader that has gone."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import typer


def nobody_reads() -> NoReturn:
    """`fabric results DIR | head` has what it wanted; what is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(0)


def warned(message: Warning | str, *_: Any, **__: Any) -> None:
    """Warnings are for the user, who did not write the line of code they come from."""
    typer.echo(f"warning: {message}", err=True)


def explained(error: Exception) -> int | None:
    """Print an error that is the user's to mend; None for one that is ours."""
    show = getattr(error, "show", None)  # a usage error of typer's own copy of click
    if show is not None:
        show()
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, (ValueError, OSError)) or type(error).__name__ in ("LockedError", "OutOfMemory"):
        from pydantic import ValidationError

        if isinstance(error, ValidationError):
            return None
        typer.echo(f"error: {error}", err=True)
        return 2
    return None
