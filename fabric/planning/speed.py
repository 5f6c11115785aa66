"""How fast this machine trains, for the plan's ETA: from earlier runs, else from a few real steps."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from fabric.store import FINISHED, Store

if TYPE_CHECKING:
    from fabric.job.load import Configuration

N_EARLIER = 8  # finished trials looked at
PROBE_SECONDS = 1.0
LARGEST_PROBE_FLOPS = 2e11  # a step above this is not probed; a product of matrices is timed instead


def flops_per_second(store: Store, base: Configuration, threads: int) -> tuple[float, str]:
    """FLOP/s of one trial with `threads` threads, and where the figure comes from."""
    earlier = _from_earlier(store, base)
    if earlier is not None:
        return earlier, "finished trials of this job"
    return one_process(base, threads)


def one_process(base: Configuration, threads: int) -> tuple[float, str]:
    """FLOP/s of the base in one process with `threads` threads, tried out now, and how."""
    tokens = (base.train.micro_batch_size or base.train.batch_size) * base.data.seq_len
    per_token = base.train.objective.flops_per_token(base.model, base.data.seq_len, base.data.n_asked)
    if 3 * per_token * tokens <= LARGEST_PROBE_FLOPS:
        return _probe_steps(base, threads), "a second of real training steps"
    return _probe_product(threads), "a timed matrix product (an upper bound)"


def _from_earlier(store: Store, base: Configuration) -> float | None:
    """The median of finished trials' speed while they train."""
    speeds: list[float] = []
    for trial_id in store.trial_ids():
        record = store.trial(trial_id)
        status, spec = record.status(), record.spec()
        if status is None or status.state != FINISHED or not status.final or not spec:
            continue
        same = spec["model"]["d_model"] == base.model.d_model and spec["data"]["seq_len"] == base.data.seq_len
        speed = status.final.get("flops_per_second")
        if same and speed:
            speeds.append(float(speed))
        if len(speeds) >= N_EARLIER:
            break
    return statistics.median(speeds) if speeds else None


def _probe_steps(base: Configuration, threads: int) -> float:
    """Real steps of the base, in its precision, with random tokens."""
    import torch

    from fabric.train.step import Stepper

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        train, seq_len = base.train.model_copy(update={"compile": False}), base.data.seq_len
        model = train.objective.build(base.model, seed=0)
        stepper = Stepper(model, train.optimizer.build(model), train, "cpu")
        n = train.micro_batch_size or train.batch_size
        n_ids = base.model.vocab_size - train.objective.EXTRA_IDS
        rows = train.objective.random_rows(n, seq_len, n_ids, base.data.n_asked)
        pair = train.objective.examples(rows, seed=0, step=0, n_ids=n_ids)
        ids, targets = (torch.from_numpy(x) for x in pair)
        times: list[float] = []
        started = time.perf_counter()
        while len(times) < 3 or time.perf_counter() - started < PROBE_SECONDS:
            at = time.perf_counter()
            stepper.gradients(ids, targets, n)
            stepper.update(1.0)
            times.append(time.perf_counter() - at)
    finally:
        torch.set_num_threads(before)
    flops = 3 * train.objective.flops_per_token(base.model, seq_len, base.data.n_asked) * n * seq_len
    return flops / statistics.median(times[1:])


def _probe_product(threads: int, n: int = 1024) -> float:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(n, n)
        x @ x
        at = time.perf_counter()
        for _ in range(3):
            x @ x
        return 3 * 2 * n**3 / (time.perf_counter() - at)
    finally:
        torch.set_num_threads(before)
