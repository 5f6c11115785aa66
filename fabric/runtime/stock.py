"""The program to compare with: hyperparameter tuning as Ray's documentation writes it, one `TorchTrainer` a trial.

Nothing of ours but the model, the data and the loss, so that both sides train the same. `python -c "from
fabric.runtime.stock import main; main()" TASK` with a JSON task; see `fabric.bench.stock`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def train_fn_per_worker(config: dict[str, Any]) -> None:
    """One trial's training, in the process of a Ray Train worker."""
    import ray.train
    import torch

    import models
    from fabric.data import Batches, TokenCache
    from fabric.evaluate.lm import score
    from fabric.train.loss import sum_nll
    from models.config import ModelConfig

    torch.set_num_threads(1)
    cache = TokenCache.open(config["cache"])
    batches = Batches(cache, "train", config["seq_len"], config["batch_size"], config["seed"])
    model = models.build(ModelConfig.model_validate(config["model"]), config["seed"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"], betas=(0.9, 0.95), fused=True)
    for step in range(config["n_steps"]):
        rows_BT1 = torch.from_numpy(batches.batch(step))
        nll = sum_nll(model, rows_BT1[:, :-1], rows_BT1[:, 1:]) / rows_BT1[:, 1:].numel()
        nll.backward()
        if ray.train.get_context().get_world_size() > 1:
            for p in model.parameters():
                torch.distributed.all_reduce(p.grad)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    found = score(model, cache, "validation", config["seq_len"], config["val_tokens"], config["batch_size"])
    ray.train.report({"val_loss": found.loss})


def train_driver_fn(config: dict[str, Any]) -> None:
    """A Tune trial: start a group of workers and wait for it."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    callbacks: list[Any] = [TuneReportCallback()]
    TorchTrainer(
        train_fn_per_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=config["workers"]),
        run_config=RunConfig(
            name=f"train-{config['seed']}",
            storage_path=config["storage"],
            callbacks=callbacks,
        ),
    ).fit()


def run_stock(task: dict[str, Any]) -> dict[str, Any]:
    """Train `task["n_trials"]` seeds; their validation losses, and the seconds Tune took for all.

    A trial of one worker takes two CPUs, its driver's and its worker's; more at once than that allows would never
    start. One of two workers has a driver without CPUs, so that both CPUs of a small machine are theirs.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import tune

    ray.init(log_to_driver=False)
    at_once = max(1, int(ray.cluster_resources()["CPU"]) // 2)
    driver: dict[str, float] = (
        {"cpu": 1} if task["workers"] == 1 else {"cpu": 0, "node:__internal_head__": 0.001}
    )
    config = {k: v for k, v in task.items() if k != "n_trials"}
    tuner = tune.Tuner(
        tune.with_resources(train_driver_fn, driver),
        param_space={**config, "seed": tune.grid_search(list(range(task["n_trials"])))},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
        run_config=tune.RunConfig(name="stock", storage_path=task["storage"]),
    )
    began = time.monotonic()
    found = tuner.fit()
    seconds = time.monotonic() - began
    ray.shutdown()
    if found.errors:
        raise RuntimeError(f"stock trials failed: {found.errors[0]}")
    return {"val_loss": [(found[i].metrics or {})["val_loss"] for i in range(len(found))], "seconds": seconds}


def main() -> None:
    """Run the task given on the command line and print what came of it."""
    print(json.dumps(run_stock(json.loads(sys.argv[1]))))
