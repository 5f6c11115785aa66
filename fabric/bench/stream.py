"""Training on a text that is streamed against the same training on its token cache, at equal CPU and width 256."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fabric.bench.cache import make_tokenizer, write_text
from fabric.bench.measure import Figure, Measured, Sample, Setting, in_turn, ratio
from fabric.bench.process import Child
from fabric.planning.machine import cpu_count

WIDTH, LAYERS, TOKENS, VOCABULARY, BATCH = 256, 4, 256, 4096, 8
QUICK_WIDTH, QUICK_LAYERS, QUICK_TOKENS, QUICK_VOCABULARY = 64, 1, 64, 512
TEXT_BYTES, QUICK_BYTES = 8_000_000, 1_000_000
UNIT_BYTES = 32 << 10  # small, so that several units are read in the steps that are timed
STEPS, QUICK_STEPS = 12, 4
CACHED, STREAMED = "cached, one CPU", "streamed, one CPU"
CACHED_ON_ALL, BY_RAY = "cached", "streamed by Ray Data"
SPEED_TARGET, WAIT_TARGET = 0.9, 0.02


def run(setting: Setting) -> Measured:
    """Shakespeare's paragraphs, shuffled again and again, one training thread.

    With everything on one CPU, a unit's tokenising takes its time from the training; with Ray Data it has the other
    CPUs, which the cached side then leaves idle.
    """
    with tempfile.TemporaryDirectory(prefix="fabric-stream-") as folder, ExitStack() as stack:
        setting.say("writing the text")
        tokenizer = make_tokenizer(Path(folder), QUICK_VOCABULARY if setting.quick else VOCABULARY)
        write_text(Path(folder, "text.jsonl"), QUICK_BYTES if setting.quick else TEXT_BYTES)
        task = {"folder": folder, "tokenizer": str(tokenizer), "quick": setting.quick}
        sides = {}
        for name, how, on_one in (
            (CACHED, "cached", True), (STREAMED, "streamed", True),
            (CACHED_ON_ALL, "cached", False), (BY_RAY, "ray", False),
        ):  # fmt: skip
            setting.say(f"preparing: {name}")
            child = Child("fabric.bench.stream:train", {**task, "how": how, "on_one": on_one})
            sides[name] = stack.enter_context(child)
        waits: dict[str, list[float]] = {name: [] for name in sides}

        def speed(name: str) -> float:
            found = sides[name].ask()
            waits[name].append(found["wait"])
            setting.say(f"{name}: {found['speed']:,.0f} tokens/s, {found['wait']:.2%} of it waiting for data")
            return float(found["speed"])

        measured = in_turn({k: (lambda k=k: speed(k)) for k in sides}, setting.repeats)  # type: ignore[misc]
    figures: dict[str, Figure] = {
        "streamed over cached, one CPU": _speed(measured, STREAMED, CACHED),
        "by Ray Data over cached": _speed(measured, BY_RAY, CACHED_ON_ALL),
    }
    for name in (STREAMED, BY_RAY):
        wait = Sample(tuple(waits[name]))
        figures[f"wait, {name}"] = Figure(wait.median, "of a step", {name: wait}, ("<=", WAIT_TARGET))
    return Measured(figures, "1")


def _speed(measured: dict[str, Sample], over: str, under: str) -> Figure:
    sides = {name: measured[name] for name in (over, under)}
    return ratio(sides, over, under, (">=", SPEED_TARGET), "tokens/s")


def train(
    folder: str, tokenizer: str, quick: bool, how: str, on_one: bool
) -> Generator[dict[str, Any], Any, None]:
    """A side in its process, three steps warm: tokens/s and the share of the time that was spent waiting for data."""
    if on_one:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with contextlib.ExitStack() as stack:
        if how == "ray":
            from fabric.runtime.connect import cluster

            stack.enter_context(cluster(None, cpu_count()))
        engine = _engine(folder, tokenizer, quick, how)
        n_steps, state = QUICK_STEPS if quick else STEPS, engine.state
        for _ in range(3):
            engine.step()
        yield {}
        while True:
            seconds, waited = state.seconds, state.data_seconds
            for _ in range(n_steps):
                engine.step()
            seconds, waited = state.seconds - seconds, state.data_seconds - waited
            yield {"speed": n_steps * engine.tokens_per_step / seconds, "wait": waited / seconds}


def _engine(folder: str, tokenizer: str, quick: bool, how: str) -> Any:
    from fabric.bench.training import decoder
    from fabric.data import prepare
    from fabric.planning.trial import TrialSpec
    from fabric.train import process
    from fabric.train.engine import Engine

    shape = (WIDTH, LAYERS, TOKENS, VOCABULARY)
    width, layers, seq_len, vocabulary = (
        (QUICK_WIDTH, QUICK_LAYERS, QUICK_TOKENS, QUICK_VOCABULARY) if quick else shape
    )
    data = {
        "corpus": {"kind": "files", "path": f"{folder}/text.jsonl"},
        "tokenizer": {"kind": "file", "path": tokenizer},
        "seq_len": seq_len,
        "stream": None if how == "cached" else {"unit_bytes": UNIT_BYTES, "held_out_bytes": 64 << 10},
    }
    spec = TrialSpec.model_validate(
        {
            "model": decoder(width, layers, seq_len, vocabulary),
            "data": data,
            "data_key": "none",
            "train": {
                "tokens": "1B",
                "batch_size": BATCH,
                "optimizer": {"kind": "adamw", "lr": 1e-3},
                "schedule": {"kind": "constant"},
            },
            "seed": 0,
        }
    )
    read = None
    if how == "ray":
        from fabric.runtime import stream

        read = stream.read_with_ray
    cache = prepare(spec.data, Path(folder, "cache"), backend="inline")
    process.settle(spec)
    return Engine(spec, cache, read=read)
