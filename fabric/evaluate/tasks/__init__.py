"""Tasks: one file a family, each a few declarations in `TASKS`; a file dropped in is found by its being there."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from fabric.evaluate.task import Task
from models.parts import meant


@cache
def tasks() -> dict[str, Task]:
    """Every task by its name, in alphabetical order. Raises ValueError where two have one name."""
    found: dict[str, Task] = {}
    for info in pkgutil.iter_modules(__path__, __name__ + "."):
        for task in importlib.import_module(info.name).TASKS:
            if task.name in found:
                raise ValueError(f"task {task.name!r} is declared twice; one of them is in {info.name}")
            found[task.name] = task
    return dict(sorted(found.items()))


def task(text: str) -> Task:
    """The task of a name, with the settings written behind it: `sst2`, `sst2:shots=4,calibrated=true`.

    Raises ValueError with the nearest names for an unknown one, and for a setting that it has not.
    """
    name, colon, written = text.strip().partition(":")
    known = tasks()
    if name not in known:
        hint = meant(name, known)
        raise ValueError(f"no task is named {name!r}{hint} (there are {', '.join(known)})")
    settings: dict[str, str] = {}
    for part in written.split(",") if colon else ():
        key, equals, value = (p.strip() for p in part.partition("="))
        if not key or not equals or key in settings:
            raise ValueError(
                f"task {text!r}: {part!r} is no setting, or the second of its name; write name=value"
            )
        settings[key] = value
    return known[name].with_settings(settings)


def named(text: str) -> list[str]:
    """The tasks of a list with commas, `sst2,boolq:shots=4,calibrated=true,copa`: settings stay with their task."""
    found: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if found and "=" in part and ":" not in part.partition("=")[0]:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found
