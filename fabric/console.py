"""The terminal, as all verbs write to it."""

from __future__ import annotations

from rich.console import Console


class PipedConsole(Console):
    """Raises BrokenPipeError where nobody reads any more (rich would end the process)."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
