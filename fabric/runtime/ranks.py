"""Worker groups: the ranks of a shape of trial, held by one long `TorchTrainer.fit()`, train trial after trial.

The reused Tune actor owns the group: a thread of it runs `fit`, whose ranks wait at a mailbox for the next task. Rank 0
reports there, and the answer goes to all ranks, so a trial stops at a report and the group goes on with the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray

from fabric.planning.machine import fitting
from fabric.planning.trial import TrialSpec
from fabric.runtime.connect import node_resources
from fabric.runtime.notices import are_gone, here, is_leaving
from fabric.train.directive import Directive, PreemptedError, Report, Stop

AFTER_PATIENCE = 60.0  # seconds: Ray Train notices a silent rank before torch.distributed gives up
WAIT = 5.0  # seconds a rank 0, or the owner, waits at the mailbox before it looks around
NODE_LOST_WITHIN = 10.0  # seconds: a node's death is known after that of its processes
ROOM_WITHIN = 10**6  # seconds a group waits for its CPUs: a cluster may have to grow
ROOM_OR_FEWER = 30  # seconds that a trial which may have fewer workers waits for all of them
IDLE = 60.0  # seconds without a task after which a group gives its CPUs back: others may wait for them


class Shape(NamedTuple):
    """What makes two worker groups alike: ranks, what each has, how long it may be silent, and wait for its room."""

    workers: int
    cpus: int
    gpus: float
    patience: float
    room_within: float


class GroupLostError(RuntimeError):
    """A rank of a worker group died, or the group never started."""


class Mailbox:
    """Between a Tune actor and rank 0 of its group: tasks one way, what comes of them the other.

    Without a task for `idle` seconds it tells the ranks to end, and takes none from then on.
    """

    def __init__(self, idle: float = IDLE) -> None:
        self._idle, self._left_idle = idle, idle
        self._is_closed = False
        self._tasks: asyncio.Queue[Any] = asyncio.Queue()
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._answers: asyncio.Queue[Directive] = asyncio.Queue()

    async def give(self, task: Mapping[str, Any] | str) -> bool:
        """Whether the task is taken."""
        if not self._is_closed:
            await self._tasks.put(task)
        return not self._is_closed

    async def take(self) -> Any:
        """The next task; None when there is none for a while."""
        task = await _soon(self._tasks, wait := min(WAIT, self._left_idle))
        self._left_idle = self._left_idle - wait if task is None else self._idle
        if task is None and self._left_idle <= 0 and self._tasks.empty():
            self._is_closed = True
            return "end"
        return task

    async def say(self, kind: str, what: Any = None) -> None:
        await self._events.put((kind, what))

    async def ask(self, row: dict[str, Any]) -> Directive:
        """What the owner answers to a report."""
        await self._events.put(("row", row))
        return await self._answers.get()

    async def answer(self, directive: Directive) -> None:
        await self._answers.put(directive)

    async def hear(self) -> tuple[str, Any] | None:
        """What happened next; None when nothing does for a while."""
        return await _soon(self._events)


async def _soon(queue: asyncio.Queue[Any], seconds: float = WAIT) -> Any:
    try:
        return await asyncio.wait_for(queue.get(), seconds)
    except TimeoutError:
        return None


def rank_loop(config: dict[str, Any]) -> None:
    """What every rank runs: tasks of the mailbox until it says "end"."""
    from fabric.runtime.worker import perform, same_sources
    from fabric.train.group import Group

    mailbox, group = config["mailbox"], Group.here()
    same_sources(config["source_hash"])

    def report(row: Mapping[str, Any]) -> Directive:
        answer: Directive = ray.get(mailbox.ask.remote(dict(row)))
        return answer

    nodes = group.gathered(here())
    if group.leads:
        ray.get(mailbox.say.remote("up", nodes))
    while True:
        task = group.told(ray.get(mailbox.take.remote()) if group.leads else None)
        if task == "end":
            return
        if task is None:
            continue
        try:
            perform(task, report, group, leaving=lambda: is_leaving(nodes), with_ray=True)
        except PreemptedError as left:
            if group.leads:
                ray.get(mailbox.say.remote("left", str(left)))
            return
        except Exception as error:
            ray.get(mailbox.say.remote("failed", f"rank {group.rank}: {type(error).__name__}: {error}"))
            raise
        if group.leads:
            ray.get(mailbox.say.remote("done"))


class WorkerGroup:
    """A living group. Every method is called by the thread that runs the Tune function."""

    def __init__(self, shape: Shape, source_hash: str) -> None:
        self.shape = shape
        self._mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
        self._ended: str | None = None
        self._has_died = False  # a rank, not of an error of its own
        self._storage = tempfile.TemporaryDirectory(prefix="fabric-ranks-", ignore_cleanup_errors=True)
        config = {"mailbox": self._mailbox, "source_hash": source_hash}
        self._thread = threading.Thread(target=self._fit, args=(config,), daemon=True)
        self._thread.start()
        try:
            self.nodes: list[str] = self._hear("up")[1]
        except BaseException:
            self.end()
            raise
        self._storage.cleanup()  # what Ray Train looks at while it starts; nothing of ours is kept there

    def _fit(self, config: dict[str, Any]) -> None:
        from ray.train.torch import TorchConfig
        from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

        from fabric.runtime.trainer import GroupTrainer

        workers, cpus, gpus, patience, room_within = self.shape
        os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(patience)
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(room_within)
        # Who is to blame, and what is tried again, the trial's planner decides.
        once = FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
        try:
            GroupTrainer(
                rank_loop,
                train_loop_config=config,
                torch_config=TorchConfig(
                    "nccl" if gpus else "gloo", timeout_s=round(patience + AFTER_PATIENCE)
                ),
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu=bool(gpus),
                    resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
                ),
                run_config=RunConfig(name="ranks", storage_path=self._storage.name, failure_config=once),
            ).fit()
            self._ended = "it ended"
        except BaseException as error:
            failures = getattr(error, "worker_failures", {}).values()
            self._has_died = any(type(f).__name__.startswith("WorkerHealthCheck") for f in failures)
            self._ended = f"{type(error).__name__}: {error}"
        finally:
            self._storage.cleanup()

    @property
    def is_alive(self) -> bool:
        return self._ended is None and self._thread.is_alive()

    def run(self, task: Mapping[str, Any], report: Report) -> bool:
        """Do a task on all ranks; False where they have gone for want of one. Raises what `report` raises, after the
        ranks have stopped; RuntimeError for an error of a rank's, GroupLostError when one died: then the group has
        ended.
        """
        if not ray.get(self._mailbox.give.remote(dict(task))):
            return False
        while True:
            kind, what = self._hear("row", "done")
            if kind == "done":
                return True
            try:
                answer = report(what)
            except BaseException as error:
                reason = {"kind": "interrupted", "by": type(error).__name__}
                ray.get(self._mailbox.answer.remote(Stop(reason)))
                self._hear("done")
                raise
            ray.get(self._mailbox.answer.remote(answer))

    def _hear(self, *kinds: str) -> tuple[str, Any]:
        while True:
            event = ray.get(self._mailbox.hear.remote())
            if event is None:
                if not self.is_alive:
                    raise GroupLostError(f"the worker group was lost: {self._ended}")
                continue
            kind, what = event
            if kind == "left":
                self.end()
                raise PreemptedError(what)
            if kind == "failed":
                self._thread.join(60)  # Ray Train hears what became of each rank
                self.end()
                if self._has_died:  # the others only saw their connections break
                    raise GroupLostError("a rank of the worker group died")
                raise RuntimeError(what)
            assert kind in kinds, f"{kind}, not {kinds}"
            return kind, what

    def end(self) -> None:
        """Let the ranks go; after a failure they are gone."""
        with contextlib.suppress(Exception):
            ray.get(self._mailbox.give.remote("end"), timeout=WAIT)
        self._thread.join(4 * WAIT)
        ray.kill(self._mailbox)


_GROUP: WorkerGroup | None = None


def perform_in_group(task: Mapping[str, Any], report: Report) -> None:
    """Do a task in this actor's worker group, which is started, or started anew, if need be.

    Where a rank is lost, or there is no room, a trial that allows it goes on at once with fewer; the next trial begins
    with all again.
    """
    spec = TrialSpec.model_validate_json(task["spec"])
    gpus, patience = float(task["gpus"]), spec.ranks.patience_seconds
    workers = _workers_to_begin_with(spec, gpus)
    while True:
        try:
            room_within = ROOM_OR_FEWER if next_fewer(workers, spec) else ROOM_WITHIN
            shape = Shape(workers, spec.threads, gpus, patience, room_within)
            if _group(shape, task["source_hash"]).run(task, report):
                return
            _end_group()
        except GroupLostError as lost:
            workers = next_fewer(workers, spec)
            if not workers:
                if _node_is_gone():
                    raise PreemptedError(str(lost)) from None
                raise


def _workers_to_begin_with(spec: TrialSpec, gpus: float) -> int:
    """The most of a trial's workers that the cluster's nodes could hold; all, to be waited for, where none fit."""
    workers, each = spec.ranks.most, {"CPU": float(spec.threads), **({"GPU": gpus} if gpus else {})}
    room = fitting(node_resources(), each)
    while workers > room and workers:
        workers = next_fewer(workers, spec)
    return workers or spec.ranks.most


def next_fewer(workers: int, spec: TrialSpec) -> int:
    """The largest number of workers below this one that the trial allows and its batch divides by; 0: none."""
    smaller = range(workers - 1, spec.ranks.fewest - 1, -1)
    return next((n for n in smaller if spec.train.batch_size % n == 0), 0)


def _node_is_gone() -> bool:
    """Whether the group was lost with a node of its; a dead process alone is a failure of the trial's."""
    deadline = time.monotonic() + NODE_LOST_WITHIN
    while _GROUP is not None and time.monotonic() < deadline:
        if are_gone(_GROUP.nodes):
            return True
        time.sleep(0.5)
    return False


def _group(shape: Shape, source_hash: str) -> WorkerGroup:
    global _GROUP
    if _GROUP is not None and (not _GROUP.is_alive or _GROUP.shape != shape):
        _end_group()
    if _GROUP is None:
        _GROUP = WorkerGroup(shape, source_hash)
    return _GROUP


def _end_group() -> None:
    global _GROUP
    if _GROUP is not None:
        _GROUP.end()
        _GROUP = None
