"""Ranks over gloo that live as long as a test file, in processes forked from one that has torch loaded."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import torch

from fabric.planning.trial import TrialSpec
from fabric.store import Store
from fabric.train import loop
from fabric.train.directive import CheckpointAndExit, Continue
from fabric.train.group import ALONE, Group


def free_port() -> int:
    """A port nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# What children import, the compiler that PyTorch's data-parallel module loads among it; of one process's servers the
# first one started serves all.
PRELOADED = [
    "torch._dynamo",
    "fabric.train.loop",
    "fabric.train.zero",
    "models.decoder",
    "deepspeed",
    "bitsandbytes",
]


def forkserver() -> Any:
    """Children from a server that has torch and the loop loaded: 0.1 s instead of 4 s each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _rank(rank: int, world: int, port: int, tasks: Any, answers: Any) -> None:
    """One rank's process: runs what it is asked, as all ranks are, until it is told None."""
    os.environ.update(DS_ACCELERATOR="cpu", RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    while (task := tasks.get()) is not None:
        try:
            answers.put((rank, train(*task, group=Group.here())))
        except Exception as error:
            answers.put((rank, error))
    torch.distributed.destroy_process_group()


def train(
    body: str,
    store: Path,
    cache: Path,
    until: int | None = None,
    leaver: int | None = None,
    group: Group = ALONE,
) -> list[tuple]:
    """Train a trial, to its end, to the report at step `until`, or to where a rank, the `leaver`, is taken away; its
    rows as (step, loss, norm, hash, val_loss). `{rank}` in the store's path is the rank: they share no folder then.
    """
    from fabric.data import TokenCache

    trial = TrialSpec.model_validate_json(body)
    record = Store(str(store).format(rank=group.rank)).trial(trial.id)

    def report(row: dict[str, Any]) -> Any:
        return CheckpointAndExit() if row["step"] == until else Continue()

    leaving = group.rank == leaver
    loop.run(trial, record, TokenCache.open(cache), report=report, leaving=lambda: leaving, group=group)
    return [
        (r["step"], r["train_loss"], r["grad_norm"], r["data_hash"], r.get("val_loss"))
        for r in record.metrics()
    ]


class Ranks:
    """`world` of them, which train what they are given."""

    def __init__(self, world: int) -> None:
        context = forkserver()
        port = free_port()
        self.answers = context.Queue()
        self.tasks = [context.Queue() for _ in range(world)]
        self.processes = [
            context.Process(target=_rank, args=(rank, world, port, queue, self.answers), daemon=True)
            for rank, queue in enumerate(self.tasks)
        ]
        for process in self.processes:
            process.start()

    def train(self, trial: TrialSpec, *where: Any) -> list[tuple]:
        for queue in self.tasks:
            queue.put((trial.model_dump_json(), *where))
        found = dict(self.answers.get(timeout=120) for _ in self.tasks)
        for answer in found.values():
            if isinstance(answer, Exception):
                raise answer
        return found[0]

    def end(self) -> None:
        for queue in self.tasks:
            queue.put(None)
        for process in self.processes:
            process.join(10)
            process.kill()
