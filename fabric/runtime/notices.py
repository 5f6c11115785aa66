"""Notice of nodes that are about to be taken away: spot instances, autoscalers, `ray drain-node`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection

import ray

LOOK_EVERY = 1.0  # seconds


class _Watch:
    """The nodes Ray says are leaving, asked for by a thread that lives as long as this process."""

    def __init__(self) -> None:
        self._leaving: frozenset[str] = frozenset()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # a head that is away for a moment
                self._leaving = frozenset(ray._private.state.state.get_draining_nodes())
            time.sleep(LOOK_EVERY)

    def __contains__(self, node: str) -> bool:
        return node in self._leaving


_WATCHES: list[_Watch] = []


def here() -> str:
    """The id of the node this process is on."""
    return str(ray.get_runtime_context().get_node_id())


def is_leaving(nodes: Collection[str]) -> bool:
    """Whether one of some nodes will be gone soon; from the first call on Ray is asked in the background."""
    if not _WATCHES:
        _WATCHES.append(_Watch())
    return any(node in _WATCHES[0] for node in nodes)


def are_gone(nodes: Collection[str]) -> bool:
    """Whether one of some nodes is no longer part of the cluster."""
    living = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return not living.issuperset(nodes)
