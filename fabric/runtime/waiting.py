"""A word where no trial begins: others use the cluster, or the nodes it should grow by do not come."""

from __future__ import annotations

import time
from collections.abc import Callable

from fabric.job.schema import ResourcesConfig
from fabric.runtime.connect import node_resources

LONG_WAIT = 60.0  # seconds without a running trial that are worth a word


class FirstWait:
    """The time until the first trial runs; `say` (a stage's name, a share done) hears once that it is long."""

    def __init__(self, asked: ResourcesConfig, say: Callable[[str, float], None]) -> None:
        self._asked, self._say = asked, say
        self._since: float | None = time.monotonic()  # None: a trial has begun, or it was said

    def look(self, has_begun: bool) -> None:
        """Whether a trial runs, as often as one likes; the clock is looked at until one does."""
        if self._since is None:
            return
        waited = time.monotonic() - self._since
        if has_begun or waited > LONG_WAIT:
            self._since = None
        if not has_begun and waited > LONG_WAIT:
            self._say(self._words(waited), 0.0)

    def _words(self, waited: float) -> str:
        each = {"CPUs": self._asked.cpus_per_worker, "GPUs": self._asked.gpus_per_worker}
        wanted = " and ".join(f"{1 if n == 'auto' else n:g} {what}" for what, n in each.items() if n)
        cpus = ", ".join(f"{node.get('CPU', 0.0):g}" for node in node_resources())
        return (
            f"no trial has begun for {waited:.0f} s: a worker waits for {wanted} free on one node; the cluster's nodes "
            f"have {cpus} CPUs, or others use them"
        )
