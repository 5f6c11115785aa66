"""Likelihoods of BLiMP's sentences and of 4-shot BoolQ's options against lm-evaluation-harness's own model's."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fabric.bench.measure import Figure, Measured, Sample, Setting, in_turn
from fabric.bench.process import Child
from fabric.bench.training import OURS, THEIRS
from fabric.planning.machine import cpu_count

TASKS = {"blimp": ("blimp", 6700), "boolq": ("boolq:shots=4", 200)}
CHOICES = tuple(TASKS)
QUICK_ITEMS = {"blimp": 12, "boolq": 4}
BATCHES, QUICK_BATCHES = (1, 8, 32, 128), (1, 8)
TRIED = 0.05  # of the items, to find their best batch size
TARGETS = {"blimp": 1.3, "boolq": 3.0}
TARGET_ALONE = 2.0  # over their batch 1, on BLiMP
AGREE = 1e-3  # nats


def run(setting: Setting) -> Measured:
    """Each side is a process of its own; reading and encoding are not timed.

    SmolLM2-135M where $FABRIC_SMOLLM2 names its file, else a small random model; the real rows where $FABRIC_DATA has
    them, else invented ones. Raises RuntimeError when the sides' likelihoods differ.
    """
    threads = min(2, cpu_count())
    figures: dict[str, Figure] = {}
    extra: dict[str, Any] = {"model": _model_file() or "random", "data": _data_folder() or "invented"}
    for name in [t for t in CHOICES if t in setting.only] or CHOICES:
        task = {"name": name, "quick": setting.quick, "threads": threads}
        with ExitStack() as stack:
            ours, theirs = (
                stack.enter_context(Child("fabric.bench.evaluate:serve", {"whose": whose, **task}))
                for whose in (OURS, THEIRS)
            )
            n, few = ours.first["n_requests"], max(8, round(ours.first["n_requests"] * TRIED))
            check_likelihoods(name, ours.ask({"n": few})["nats"], theirs.ask({"n": few, "batch": 8})["nats"])
            batches = QUICK_BATCHES if setting.quick else BATCHES
            tried = {b: theirs.ask({"n": few, "batch": b})["seconds"] for b in batches}
            best = min(tried, key=lambda b: tried[b])
            setting.say(f"{name}: their best batch size is {best}")
            sides = in_turn(
                {
                    OURS: lambda child=ours, n=n: n / child.ask({"n": n})["seconds"],  # type: ignore[misc]
                    THEIRS: lambda child=theirs, n=n, b=best: n / child.ask({"n": n, "batch": b})["seconds"],  # type: ignore[misc]
                },
                setting.repeats,
            )
        extra[name] = {"n_requests": n, "best_batch": best, "seconds_tried": tried}
        note = f"likelihoods/s of {n} requests, theirs at batch size {best}"
        figures[f"{name}: ours over their best"] = _ratio(sides, (">=", TARGETS[name]), note)
        if name == "blimp":
            alone = Sample((few / tried[1],))
            both = {OURS: sides[OURS], "theirs at batch 1": alone}
            value = sides[OURS].median / alone.median
            note = f"theirs once, on {few} of them"
            figures["blimp: ours over their batch 1"] = Figure(value, "x", both, (">=", TARGET_ALONE), note)
    return Measured(figures, str(threads), extra)


def _ratio(sides: Mapping[str, Sample], target: tuple[str, float], note: str) -> Figure:
    return Figure(sides[OURS].median / sides[THEIRS].median, "x", sides, target, note)


def check_likelihoods(name: str, ours: list[float], theirs: list[float]) -> None:
    """Raises RuntimeError where the sides do not compute the same."""
    off = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if off > AGREE:
        raise RuntimeError(
            f"{name}: the likelihoods differ by up to {off:.3g} nats: their speeds say nothing"
        )


def serve(whose: str, name: str, quick: bool, threads: int) -> Generator[dict[str, Any], Any, None]:
    """One side in its process: the number of requests first, then the seconds and likelihoods of the first `n`."""
    os.environ["HF_HUB_OFFLINE"], os.environ["TQDM_DISABLE"] = "1", "1"
    import torch

    from fabric.evaluate.likelihood import Request, likelihoods

    torch.set_num_threads(threads)
    model, requests = _work(name, quick)
    if whose == THEIRS:
        from lm_eval.models.huggingface import HFLM

        import models.hf

        lm: Any = HFLM(pretrained=models.hf.to_hf(model), tokenizer=_any_tokenizer(), device="cpu")

    def score(asked: list[Request], batch: int) -> list[float]:
        if whose == OURS:
            return [x.nats for x in likelihoods(model, asked)]
        lm.batch_size_per_gpu = batch
        pairs = [(("", ""), list(r.context), list(r.continuation)) for r in asked]
        return [float(nats) for nats, _ in lm._loglikelihood_tokens(pairs, disable_tqdm=True)]

    score(requests[:8], 8)  # to warm up
    asked = yield {"n_requests": len(requests)}
    while True:
        # Spread over all requests, so that few of them are like all.
        chosen = requests[:: max(1, len(requests) // asked["n"])][: asked["n"]]
        began = time.perf_counter()
        nats = score(chosen, asked.get("batch", 0))
        asked = yield {"seconds": time.perf_counter() - began, "nats": nats}


def _work(name: str, quick: bool) -> tuple[Any, list[Any]]:
    """A model, and the requests of a task."""
    from fabric.data.tokenizer import ByteTokenizer
    from fabric.evaluate.subject import Subject
    from fabric.evaluate.task import Asked
    from fabric.evaluate.tasks import task
    from fabric.trained import Trained, find_trained
    from models import build, preset

    file, folder = _model_file(), _data_folder()
    if file is not None:
        trained = find_trained(file)
    else:
        config = preset("smollm-tiny", vocab_size=257, max_seq_len=2048)
        trained = Trained(Path(), config, ByteTokenizer(), lambda: build(config, seed=0))
    subject = Subject.of(trained)
    text, n_items = TASKS[name]
    chosen = task(text)
    limit = QUICK_ITEMS[name] if quick else n_items
    if folder is not None:
        return subject.model, list(chosen.prepare(chosen.load(Asked(folder, limit)), subject).texts.values())
    import tempfile

    with tempfile.TemporaryDirectory() as temp:
        _invent(Path(temp))
        prepared = chosen.prepare(chosen.load(Asked(Path(temp), limit)), subject)
    return subject.model, list(prepared.texts.values())


def _invent(folder: Path) -> None:
    """Rows in the releases' form, as long as the real ones."""
    import json

    rng = random.Random(0)
    words = [
        "the",
        "a",
        "dog",
        "cat",
        "house",
        "tree",
        "runs",
        "sees",
        "old",
        "small",
        "green",
        "river",
        "boat",
    ]

    def sentence(n: int) -> str:
        return " ".join(rng.choice(words) for _ in range(n)) + "."

    (folder / "blimp").mkdir()
    pairs = []
    for i in range(6700):
        good = sentence(8)
        pairs.append({"sentence_good": good, "sentence_bad": good[:-1] + "s.", "UID": str(i % 67)})
    (folder / "blimp" / "rows.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    (folder / "boolq").mkdir()
    for split in ("train", "val"):
        rows = [{"question": sentence(8), "passage": sentence(90), "label": bool(i % 2)} for i in range(200)]
        (folder / "boolq" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def _any_tokenizer() -> Any:
    """The harness wants one; requests are given to it as ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<end>": 0}, "<end>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")


def _model_file() -> str | None:
    return os.environ.get("FABRIC_SMOLLM2")


def _data_folder() -> Path | None:
    named = os.environ.get("FABRIC_DATA")
    there = named is not None and all((Path(named) / name).is_dir() for name in TASKS)
    return Path(named) if named is not None and there else None
