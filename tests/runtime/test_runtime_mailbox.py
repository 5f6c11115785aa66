"""Tasks of a worker group: none is lost where the ranks go for want of one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fabric.runtime import ranks
from fabric.runtime.ranks import Mailbox


async def take(mailbox, n):
    return [await mailbox.take() for _ in range(n)]


def test_a_group_without_a_task_ends_and_takes_none_from_then_on():
    async def story():
        mailbox = Mailbox(idle=0.3)
        assert await mailbox.give("a")
        assert await mailbox.take() == "a"
        waiting = asyncio.ensure_future(take(mailbox, 1))
        await asyncio.sleep(0.2)
        assert await mailbox.give("b")
        assert await waiting == ["b"]
        assert await mailbox.take() == "end", "after a task it waits as long again"
        assert not await mailbox.give("c")

    asyncio.run(story())


def test_waiting_is_counted_over_looks(monkeypatch):
    monkeypatch.setattr(ranks, "WAIT", 0.05)

    async def story():
        found = await take(Mailbox(idle=0.19), 4)
        assert found == [None, None, None, "end"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("cpus", "begins_with"), [([2, 2], 4), ([2, 1], 2), ([1, 1], 2), ([1], 1), ([], 4), ([8], 4)]
)
def test_a_trial_begins_with_as_many_workers_as_the_nodes_could_hold(monkeypatch, cpus, begins_with):
    """Of 4 to 1 that its batch of 4 divides by; where nothing fits, with all: the cluster may grow."""
    monkeypatch.setattr(ranks, "node_resources", lambda: [{"CPU": float(n)} for n in cpus])
    spec = SimpleNamespace(
        ranks=SimpleNamespace(most=4, fewest=1), threads=1, train=SimpleNamespace(batch_size=4)
    )
    assert ranks._workers_to_begin_with(spec, gpus=0.0) == begins_with
