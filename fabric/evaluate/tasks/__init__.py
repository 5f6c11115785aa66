"""Tasks: one file a family, each a few declarations in `TASKS`; a file dropped in is found by its being there."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from fabric.evaluate.options import OptionTask
from models.parts import nearest


@cache
def tasks() -> dict[str, OptionTask]:
    """Every task by its name, in alphabetical order. Raises ValueError where two have one name."""
    found: dict[str, OptionTask] = {}
    for info in pkgutil.iter_modules(__path__, __name__ + "."):
        for task in importlib.import_module(info.name).TASKS:
            if task.name in found:
                raise ValueError(f"task {task.name!r} is declared twice; one of them is in {info.name}")
            found[task.name] = task
    return dict(sorted(found.items()))


def task(name: str) -> OptionTask:
    """The task of a name. Raises ValueError with the nearest names for an unknown one."""
    known = tasks()
    if name not in known:
        close = nearest(name, list(known))
        hint = f"did you mean {close!r}? " if close else ""
        raise ValueError(f"no task is named {name!r}; {hint}there are {', '.join(known)}")
    return known[name]
