"""Parts: frozen configs with a `kind`, one file each, registered by being there.

A *family* of parts (mixers, ffns, optimizers, corpora …) is a Python package. Every module in it that defines a
subclass of the family's base config is a part; its `kind` literal is the YAML value. Dropping a file in is all it
takes: `union_of` imports the package's modules and returns pydantic's discriminated union over what it found.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, ClassVar, Union, get_args

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Part(Config):
    """Base of every part's config; a subclass adds `kind: Literal[...]` (no default, so it is always written out).

    `REVISION` is raised whenever a change of code changes the part's numbers; it enters the trial's identity.
    """

    REVISION: ClassVar[int] = 1
    kind: str


def kind_of(config_class: type[Part]) -> str:
    """The YAML name of a part: the single value of its `kind` literal."""
    (kind,) = get_args(config_class.model_fields["kind"].annotation)
    return str(kind)


@cache
def parts_in(package: str, base: type[Part]) -> dict[str, type[Any]]:
    """All parts of a family as {kind: config class}, in alphabetical order of kind.

    Raises ValueError when two files claim the same kind.
    """
    found: dict[str, type[Part]] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
        module = importlib.import_module(info.name)
        for _, item in inspect.getmembers(module, inspect.isclass):
            if item.__module__ != module.__name__ or not issubclass(item, base) or item is base:
                continue
            if not get_args(item.model_fields["kind"].annotation):  # a base class of several parts
                continue
            kind = kind_of(item)
            if kind in found:
                raise ValueError(
                    f"kind {kind!r} is defined twice: {found[kind].__module__} and {module.__name__}"
                )
            found[kind] = item
    return dict(sorted(found.items()))


def union_of(package: str, base: type[Part]) -> Any:
    """The pydantic type of a field that takes any part of a family, told apart by `kind`."""
    classes = tuple(parts_in(package, base).values())
    return Annotated[Union[classes], Field(discriminator="kind")]  # noqa: UP007 (built at run time)


def divisors_in_words(n: int, near: int) -> str:
    """The divisors of n that are nearest to a number, six at most, in order."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    found = sorted({*small, *(n // d for d in small)}, key=lambda d: (abs(d - near), d))[:6]
    *most, last = map(str, sorted(found))
    return f"{', '.join(most)} or {last}" if most else last


def nearest(name: str, allowed: list[str] | tuple[str, ...]) -> str | None:
    """The allowed name closest to a misspelt one, or None when nothing is close."""
    close = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return close[0] if close else None


def meant(name: str, allowed: Iterable[str]) -> str:
    """What an error says of a misspelt name: "; did you mean 'x'?", or nothing."""
    close = nearest(name, list(allowed))
    return f"; did you mean {close!r}?" if close else ""
