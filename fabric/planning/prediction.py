"""Which predictions of several workers a plan shows: of this machine where it was measured, and of GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric.planning.machine import cpu_count
from fabric.planning.machine_workers import remembered
from fabric.planning.parallel import Prediction, Step, predict
from fabric.planning.speed import one_process
from models import n_params

if TYPE_CHECKING:
    from fabric.job.load import Configuration
    from fabric.job.schema import ResourcesConfig

SCALE = "cluster"


def predictions(
    base: Configuration, resources: ResourcesConfig, scale: str | None, threads: int
) -> list[Prediction]:
    """How a step of the base would scale; [] for a job of one worker a trial at any scale but `cluster`."""
    if resources.most == 1 and scale != SCALE:
        return []
    train, seq_len = base.train, base.data.seq_len
    forward = train.objective.flops_per_token(base.model, seq_len, base.data.n_asked)
    flops = 3 * forward * train.batch_size * seq_len

    def step(flops_per_second: float) -> Step:
        seconds = flops / flops_per_second
        return Step("the base", n_params(base.model), seconds, train.batch_size, resources.most)

    cluster, found = resources.cluster, []
    if not resources.gpus_per_worker and (here := remembered()) is not None:
        speed, _ = one_process(base, min(threads, cpu_count()))
        found.append(predict("this machine", step(speed), here, claimed=False))
    found.append(predict("GPUs", step(cluster.flops_per_gpu * cluster.mfu), cluster, claimed=True))
    return found
