"""Ranks over gloo without Ray, each a process with one thread: what the `workers` bench asks to step and to sum."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

from fabric.bench.training import Training, made

SECONDS_TO_ANSWER = 120.0
SECONDS_TO_END = 10.0
# Imported once, in the process that all ranks are forked from.
PRELOADED = [
    "torch",
    "torch.nn.parallel.distributed",
    "fabric.bench.ranks",
    "fabric.train.step",
    "models.decoder",
]


class Ranks:
    """`world` processes that hold the same models; every request goes to all of them, rank 0's answer counts.

    Requests: `{"train": name, "times": n}` gives the median seconds of a step and, of several ranks, of its exposed
    exchange; `{"bytes": b, "times": n}` the median seconds of an all-reduce. Raises RuntimeError for a rank that does
    not answer, and what went wrong in one that does.
    """

    def __init__(self, world: int, trainings: Mapping[str, Training]) -> None:
        self.world = world
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        port = free_port()
        pipes = [context.Pipe() for _ in range(world)]
        self._pipes = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(theirs, r, world, port, dict(trainings)), daemon=True)
            for r, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def ask(self, request: Mapping[str, Any]) -> dict[str, float]:
        """What rank 0 measured."""
        for pipe in self._pipes:
            pipe.send(request)
        answers = [self._answer(rank, pipe) for rank, pipe in enumerate(self._pipes)]
        return answers[0]

    def _answer(self, rank: int, pipe: Connection) -> dict[str, float]:
        if not pipe.poll(SECONDS_TO_ANSWER):
            raise RuntimeError(f"rank {rank} of {self.world} has not answered for {SECONDS_TO_ANSWER:.0f} s")
        answer = pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        found: dict[str, float] = answer
        return found

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # it has ended already
                pipe.send(None)
        for process in self._processes:
            process.join(SECONDS_TO_END)
            process.kill()


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _serve(pipe: Connection, rank: int, world: int, port: int, trainings: Mapping[str, Training]) -> None:
    """One rank's process: answers requests until it is sent None."""
    import torch

    torch.set_num_threads(1)
    try:
        with _joined(rank, world, port):
            sides = {name: made(training) for name, training in trainings.items()}
            while (request := pipe.recv()) is not None:
                if "train" in request:
                    name = request["train"]
                    pipe.send(_steps(sides[name], trainings[name], rank, world, request["times"]))
                else:
                    pipe.send(_sums(request["bytes"], request["times"]))
    except Exception as error:
        pipe.send(error)


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


def _steps(side: Any, training: Training, rank: int, world: int, times: int) -> dict[str, float]:
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
