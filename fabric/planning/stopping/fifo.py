"""No early stopping: every trial runs to its end."""

from __future__ import annotations

from typing import Literal

from fabric.planning.stopping.base import StoppingRule


class Fifo(StoppingRule):
    """Trials run to their end in the order they were planned."""

    kind: Literal["fifo"]
