"""Ranks over gloo without Ray, each a process with one thread: what the `workers` bench asks to step and to sum."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import statistics
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fabric.bench.process import Child

SECONDS_TO_ANSWER = 120  # of a rank: then the others give it up


class Ranks:
    """`world` processes that hold the same models; every request goes to all of them, rank 0's answer counts."""

    def __init__(self, world: int, trainings: Mapping[str, Mapping[str, Any]]) -> None:
        self.world = world
        port = free_port()
        with contextlib.ExitStack() as started:
            self._pool = started.enter_context(ThreadPoolExecutor(world))
            tasks = [{"rank": r, "world": world, "port": port, "trainings": trainings} for r in range(world)]
            starting = [self._pool.submit(Child, "fabric.bench.ranks:rank", task) for task in tasks]
            self._children = [started.enter_context(child.result()) for child in starting]
            self.ask({})  # they find each other
            self._close = started.pop_all()

    def ask(self, request: Mapping[str, Any]) -> dict[str, float]:
        """What rank 0 measured."""
        found: list[dict[str, float]] = list(self._pool.map(lambda child: child.ask(request), self._children))
        return found[0]

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        self._close.close()


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rank(
    rank: int, world: int, port: int, trainings: Mapping[str, Mapping[str, Any]]
) -> Generator[dict[str, float], Mapping[str, Any], None]:
    """One rank: joins at the first request, then times steps of a training or all-reduces of so many bytes.

    `{"train": name, "times": n}` gives the median seconds of a step and of its exposed exchange (NaN alone),
    `{"bytes": b, "times": n}` the median seconds of an all-reduce.
    """
    import torch

    from fabric.bench.training import Training, made

    torch.set_num_threads(1)
    yield {}
    with _joined(rank, world, port):
        sides = {name: made(Training(**task)) for name, task in trainings.items()}
        request = yield {}
        while True:
            if "train" in request:
                name = request["train"]
                request = yield _steps(
                    sides[name], Training(**trainings[name]), rank, world, request["times"]
                )
            else:
                request = yield _sums(request["bytes"], request["times"])


@contextlib.contextmanager
def _joined(rank: int, world: int, port: int) -> Iterator[None]:
    import torch

    if world == 1:
        yield
        return
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    timeout = datetime.timedelta(seconds=SECONDS_TO_ANSWER)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world, timeout=timeout)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _steps(side: Any, training: Any, rank: int, world: int, times: int) -> dict[str, float]:
    share = training.batch // world
    rows_BT1 = training.rows_BT1(0)[rank * share : (rank + 1) * share]
    side.step(rows_BT1)  # what was idle wakes up
    seconds, exposed = [], []
    for _ in range(times):
        began = time.perf_counter()
        side.step(rows_BT1)
        seconds.append(time.perf_counter() - began)
        if side.stepper.exposed is not None:
            exposed.append(side.stepper.exposed.seconds())
    wait = {"exposed": statistics.median(exposed)} if exposed else {}
    return {"seconds": statistics.median(seconds), **wait}


def _sums(n_bytes: int, times: int) -> dict[str, float]:
    import torch

    values = torch.zeros(n_bytes // 4)
    seconds = []
    for number in range(times + 1):
        torch.distributed.barrier()
        began = time.perf_counter()
        torch.distributed.all_reduce(values)
        if number:  # the first one is warm-up
            seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds)}
