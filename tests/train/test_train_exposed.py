"""What of the exchange of gradients is exposed: what is still to come when the rank's own backward pass is through."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from fabric.train.exposed import ExposedExchange

SECONDS = 0.2
WIDTH = 640  # a layer is more than a bucket takes (1 MiB)


class Slow(torch.autograd.Function):
    """Computes nothing, and takes its time to do so backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(2 * SECONDS)
        return gradient


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = (torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, x):
        return self.last(Slow.apply(self.first(x))).sum()


@pytest.fixture
def exposed_by():
    """Seconds exposed where the buckets of these numbers take `SECONDS` to be summed; a group of one, sums by hand."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())

    def measure(slow_buckets):
        sent: list[int] = []

        def sum_later(_state, bucket):
            summed = torch.futures.Future()
            late = SECONDS if len(sent) in slow_buckets else 0.0
            sent.append(bucket.index())
            threading.Timer(late, lambda: summed.set_result(bucket.buffer())).start()
            return summed

        wrapped = torch.nn.parallel.DistributedDataParallel(Model(), bucket_cap_mb=1)
        wrapped.register_comm_hook(None, sum_later)
        exchange = ExposedExchange("cpu")
        for _ in range(2):  # what belongs to which bucket is found out by the first step
            sent.clear()
            loss = wrapped(torch.randn(2, WIDTH))
            exchange.watch(loss)
            loss.backward()
        assert len(sent) == 2
        return exchange.summed().seconds()

    yield measure
    torch.distributed.destroy_process_group()


def test_only_what_computing_does_not_hide_is_exposed(exposed_by):
    assert exposed_by({0}) < SECONDS / 2, (
        "the last layer's gradients were summed while the first one computed"
    )
    assert exposed_by({1}) > SECONDS / 2, "the first layer's come last, when there is nothing left to compute"
