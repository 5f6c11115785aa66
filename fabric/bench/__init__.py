"""Claims of the README measured on this machine: one file a bench, both sides in one run."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fabric.bench.measure import Setting, finish
from fabric.paths import real_path
from fabric.store import local
from models.parts import meant


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


def bench(
    name: str,
    repeats: int = 5,
    out: str | Path = "runs",
    quick: bool = False,
    only: Sequence[str] = (),
    profile: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure `name`, each side `repeats` times in turn; plain data, ready for JSON.

    `quick` takes the smallest size that still measures something: for tests, not for a README. `only` names parts of
    a bench that has some (sizes, precisions); `profile` says where the time goes instead of how much it is;
    `progress` is called with a line now and then. Records go below `out` and are removed afterwards; token caches
    and profiles stay there. Raises ValueError for an unknown name or part.
    """
    modules = _modules()
    if name not in modules:
        hint = meant(name, modules)
        raise ValueError(f"no bench is named {name!r}{hint} (there are {', '.join(modules)})")
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be at least 1")
    module = modules[name]
    _check_parts(name, only, getattr(module, "CHOICES", ()))
    setting = Setting(
        repeats,
        real_path(local(out, "--out")),
        quick,
        tuple(only),
        progress or (lambda _line: None),
    )
    if not profile:
        return finish(name, benches()[name], setting, module.run(setting))
    if not hasattr(module, "profile"):
        able = ", ".join(k for k, m in modules.items() if hasattr(m, "profile"))
        raise ValueError(f"bench {name} has no profile; these have one: {able}")
    return finish(name, benches()[name], setting, module.profile(setting))


def _check_parts(name: str, only: Sequence[str], choices: Sequence[str]) -> None:
    for part in only:
        if not choices:
            raise ValueError(f"bench {name} is measured whole; leave out only={part!r}")
        if part not in choices:
            hint = meant(part, choices)
            raise ValueError(f"bench {name} has no part {part!r}{hint} (there are {', '.join(choices)})")
