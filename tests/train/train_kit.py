"""Small trials on a small text, and children that run them (importable by a forkserver's children)."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import torch
from ranks_kit import forkserver

from fabric.data import DataConfig, TokenCache, prepare
from fabric.planning.trial import TrialSpec
from fabric.store import Store, TrialRecord
from fabric.train import checkpoint, loop
from fabric.train.config import OptimizerConfig
from fabric.train.directive import Continue
from fabric.train.recorder import Recorder
from fabric.train.step import Stepper
from models.mixers.base import MixerConfig
from models.parts import Part, kind_of, parts_in

SEQ_LEN, BATCH = 32, 4
MHA = {"kind": "mha", "n_heads": 4}
ADAMW = {"kind": "adamw", "lr": 3e-3}
_SMALL = {"n_heads": 4, "n_kv_heads": 2, "lr": 3e-3}


def small_part(part: type[Part]) -> dict[str, Any]:
    """A small instance of any registered part: its required fields filled in."""
    required = [n for n, field in part.model_fields.items() if field.is_required() and n != "kind"]
    return {"kind": kind_of(part), **{name: _SMALL.get(name, 8) for name in required}}


def every_mixer() -> dict[str, dict[str, Any]]:
    return {kind: small_part(part) for kind, part in parts_in("models.mixers", MixerConfig).items()}


def every_optimizer() -> dict[str, dict[str, Any]]:
    """8-bit ones quantise the small models' weights too."""
    found = {}
    for kind, part in parts_in("fabric.train.optimizers", OptimizerConfig).items():
        found[kind] = small_part(part)
        if "min_8bit_size" in part.model_fields:
            found[kind]["min_8bit_size"] = 1024
    return found


def write_text(path: Path, n_documents: int = 60) -> None:
    """A text of words with some regularity, the same every time."""
    rng = random.Random(7)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "her", "dog", "run", "home"]
    documents = [" ".join(rng.choice(words) for _ in range(30)) + "." for _ in range(n_documents)]
    path.write_text("\n\n".join(documents))


def make_cache(folder: Path) -> tuple[DataConfig, TokenCache]:
    """A byte-level token cache of about 6000 training tokens."""
    write_text(folder / "text.txt")
    config = DataConfig.model_validate(
        {
            "corpus": {"kind": "files", "path": str(folder / "text.txt")},
            "tokenizer": "bytes",
            "seq_len": SEQ_LEN,
            "validation_fraction": 0.1,
            "test_fraction": 0.1,
        }
    )
    return config, prepare(config, folder / "cache", backend="inline")


def make_trial(
    data: DataConfig,
    cache: TokenCache,
    *,
    steps: int = 12,
    batch_size: int = BATCH,
    seed: int = 1,
    mixer: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    evaluate: dict[str, Any] | None = None,
    **train: Any,
) -> TrialSpec:
    """A trial of `steps` steps of 4 x 32 tokens with a two-layer model of width 32."""
    body = {
        "model": {
            "vocab_size": cache.vocab_size,
            "d_model": 32,
            "n_layers": 2,
            "max_seq_len": SEQ_LEN,
            "mixer": mixer or MHA,
            "ffn": {"kind": "swiglu", "d_ff": 64},
            **(model or {}),
        },
        "data": data,
        "data_key": cache.key,
        "train": {
            "tokens": steps * batch_size * SEQ_LEN,
            "batch_size": batch_size,
            "optimizer": optimizer or ADAMW,
            "schedule": {"kind": "cosine", "warmup": 2},
            "log_every_steps": 1,
            "checkpoint": {"every_seconds": None},
            **train,
        },
        "evaluate": {
            "times": 2,
            "val_tokens": 4 * SEQ_LEN,
            "final_val_tokens": 8 * SEQ_LEN,
            "recall": False,
            "samples": None,
            **(evaluate or {}),
        },
        "seed": seed,
    }
    return TrialSpec.model_validate(body)


def losses(record: TrialRecord) -> list[tuple[int, float]]:
    """(step, training loss) of every row."""
    return [(row["step"], row["train_loss"]) for row in record.metrics()]


def final_files(record: TrialRecord) -> dict[str, bytes]:
    """The newest checkpoint's files."""
    newest = checkpoint.newest_checkpoint(record)
    assert newest is not None
    return newest[1]


def loop_state(record: TrialRecord) -> dict[str, Any]:
    """What the newest checkpoint's state.pt holds."""
    return checkpoint._load(final_files(record)["state.pt"])


class Reports:
    """A report that keeps the rows and answers with the directives given, by step."""

    def __init__(self, answers: dict[int, Any] | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.answers = answers or {}

    def __call__(self, row: dict[str, Any]) -> Any:
        self.rows.append(row)
        answer = self.answers.get(row["step"], Continue())
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @property
    def steps(self) -> list[int]:
        return [row["step"] for row in self.rows]


def run_child(target: Any, *args: Any, **options: Any) -> int:
    """Run `target(*args, **options)` in a child; returns its exit code (negative: the signal that killed it)."""
    child = forkserver().Process(target=target, args=args, kwargs=options)
    child.start()
    child.join(60)
    assert not child.is_alive(), "the child did not end in time"
    return child.exitcode


def train_in_child(trial: TrialSpec, folder: Path, cache: TokenCache, **options: Any) -> None:
    """Target of a child: train with the record below `folder`."""
    loop.run(trial, Store(folder).trial(trial.id), cache, **options)


def die_before_step(trial: TrialSpec, folder: Path, cache: TokenCache, step: int, **options: Any) -> None:
    """Target of a child: train, and be killed before the update that makes step `step`."""
    update = Stepper.update

    def update_or_die(self: Stepper, multiplier: float) -> torch.Tensor:
        update_or_die.done += 1  # type: ignore[attr-defined]
        if update_or_die.done == step:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, multiplier)

    update_or_die.done = 0  # type: ignore[attr-defined]
    Stepper.update = update_or_die  # type: ignore[method-assign]
    train_in_child(trial, folder, cache, **options)


def die_in(name: str, trial: TrialSpec, folder: Path, cache: TokenCache, **options: Any) -> None:
    """Target of a child: train, and be killed on entering the recorder's method `name`."""

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Recorder, name, die)
    train_in_child(trial, folder, cache, **options)
