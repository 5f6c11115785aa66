"""Claims of the README measured on this machine: one file a bench, both sides in one run."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from fabric.bench.measure import Setting, finish
from models.parts import nearest


def _modules() -> dict[str, ModuleType]:
    """Every module of this package that defines `run`, by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__, __name__ + "."):
        module = importlib.import_module(info.name)
        if hasattr(module, "run"):
            found[info.name.rsplit(".", 1)[1]] = module
    return dict(sorted(found.items()))


def benches() -> dict[str, str]:
    """The benches there are, each with a one-line description."""
    return {name: (module.__doc__ or "").split("\n")[0] for name, module in _modules().items()}


def bench(name: str, repeats: int = 5, out: str | Path = "runs", quick: bool = False) -> dict[str, Any]:
    """Measure `name`, each side `repeats` times in turn; plain data, ready for JSON.

    `quick` takes the smallest size that still measures something: for tests, not for a README. Records go below
    `out` and are removed afterwards; token caches stay there. Raises ValueError for an unknown name.
    """
    modules = _modules()
    if name not in modules:
        close = nearest(name, list(modules))
        hint = f"did you mean {close!r}? " if close else ""
        raise ValueError(f"no bench is named {name!r}; {hint}there are {', '.join(modules)}")
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be at least 1")
    setting = Setting(repeats, Path(out).expanduser().resolve(), quick)
    return finish(name, benches()[name], setting, modules[name].run(setting))
