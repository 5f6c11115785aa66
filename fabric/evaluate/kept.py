"""Results of tasks on disk: <out>/evaluations/<target>/<task>.json, each whole or not there, found again by its key.

A key is a hash of all that a result depends on: the model's weights and tokenizer, the task with its settings, its
items as they were read, and how it was asked. Another file, another template or another limit is another result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fabric.data.disk import remembered_sha256, sha256_of, write_atomic
from fabric.evaluate.task import Asked, Ran, Task
from fabric.store import dump_json

if TYPE_CHECKING:
    from fabric.trained import Trained

SCHEMA_VERSION = 1
CONFIG_FILES = ("*.safetensors", "config.json", "tokenizer*.json", "special_tokens_map.json")


def target_key(trained: Trained, cache_root: Path) -> str:
    """A hash of a target's weights, configuration and tokenizer (hex); those of large files are remembered."""
    if trained.trial is not None:
        record = trained.trial.record
        newest = record.checkpoints()[-1]
        return sha256_of({"trial": record.id, "weights": newest.files["model.safetensors"]})
    source = Path(str(trained.source))
    files = [source] if source.is_file() else sorted({f for p in CONFIG_FILES for f in source.glob(p)})
    return sha256_of({f.name: remembered_sha256(f, cache_root) for f in files})


def result_key(task: Task, asked: Asked, items: Sequence[Any], precision: str, beside: Any = None) -> str:
    """A hash of what is asked of a target (hex); `beside`: what the task's result depends on beside the items."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode())
    body = {
        "kind": [task.KIND, task.REVISION],
        "task": task.label,
        "items": digest.hexdigest(),
        "limit": asked.limit,
        "seed": asked.seed,
        "precision": precision,
        "beside": beside,
    }
    return sha256_of(body)


class Result(NamedTuple):
    """What is kept of a task that was run."""

    ran: Ran
    seconds: float


def place_of(out: Path, target: str, task: Task, key: str) -> Path:
    """Where a result is kept."""
    return out / "evaluations" / target[:16] / f"{task.name}-{key[:16]}.json"


def find(path: Path) -> Result | None:
    """The result at a place; None where there is none, or what is there is damaged."""
    try:
        body = json.loads(path.read_bytes())
        if body["schema_version"] != SCHEMA_VERSION:
            return None
        return Result(Ran(body["outcomes"], tuple(body["remarks"])), float(body["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(path: Path, result: Result, about: dict[str, Any]) -> None:
    """Keep a result. `about`: what a reader wants to know of it besides."""
    body = {
        "schema_version": SCHEMA_VERSION,
        **about,
        "seconds": result.seconds,
        "remarks": list(result.ran.remarks),
        "outcomes": list(result.ran.outcomes),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, dump_json(body))
