"""A job's phases checked before anything trains: every condition can hold, every arm fits somewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import BaseModel

from fabric.job.document import JobError
from fabric.job.errors import explain
from fabric.job.load import Configuration, Job, Override
from fabric.job.units import parse_count, parse_seconds
from fabric.planning.expand import arms_of_phase
from models.parts import nearest

COMBINATIONS_A_PHASE = 40  # of earlier phases' arms that later conditions are tried on
Overrides = tuple[Override, ...]


def applies(job: Job, when: Mapping[str, Any], overrides: Sequence[Override]) -> bool:
    """Whether a phase's condition holds for the base with these overrides on it."""
    if not when:
        return True
    settings = paths_of(job.configure(overrides))
    return all(path in settings and _same(settings[path], wanted) for path, wanted in when.items())


def paths_of(configuration: Configuration) -> dict[str, Any]:
    """Every dotted path of a configuration (`model.mixer.kind`) with its value."""
    found: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        found[path] = value
        if isinstance(value, BaseModel):
            for name in type(value).model_fields:
                walk(getattr(value, name), f"{path}.{name}")

    for section in ("model", "data", "train", "evaluate"):
        walk(getattr(configuration, section), section)
    return found


def _same(value: Any, wanted: Any) -> bool:
    """Equal, also where YAML has a number as text (`3e-4`, `2M`, `5min`)."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(wanted, str) and isinstance(value, int | float):
        for read in (float, parse_count, parse_seconds):
            try:
                if math.isclose(value, read(wanted), rel_tol=1e-12):
                    return True
            except ValueError:
                continue
        return False
    return bool(value == wanted)


def check_phases(job: Job, check: Callable[[Overrides], object]) -> None:
    """Raise JobError for a mistake in any phase, so that one in the last shows before the first trains.

    Every arm must pass `check` on the job's base, or, in a phase with a condition, on the first combination of
    earlier arms that meets it. (On what is really adopted an arm may still not fit; the study leaves it out then.)
    """
    bases: list[Overrides] = [()]
    all_tried = True
    n_kept = 1
    for index, phase in enumerate(job.config.search.phases):
        own = arms_of_phase(job, index, phase)
        if phase.keep > len(own) * n_kept:
            message = f"{phase.keep} is more than the phase's {len(own) * n_kept} arms"
            raise explain(job.document, ("search", "phases", index, "keep"), message)
        n_kept = phase.keep
        usable = [b for b in bases if applies(job, phase.when, b)]
        if not usable and all_tried:
            raise _never(job, index, phase.when)
        for arm in own:
            for base in usable[:1]:
                check(base + arm.overrides)
        fitting = (b + a.overrides for b in usable for a in own if _fits(job, b + a.overrides))
        new = list(islice(fitting, COMBINATIONS_A_PHASE))
        all_tried = all_tried and len(new) < COMBINATIONS_A_PHASE
        bases += new


def _fits(job: Job, overrides: Overrides) -> bool:
    try:
        job.configure(overrides)
    except JobError:
        return False
    return True


def _never(job: Job, index: int, when: Mapping[str, Any]) -> JobError:
    known = paths_of(job.configure())
    for path in when:
        close = nearest(path, list(known))
        if path not in known and close:
            message = f"neither the base nor an earlier phase's arm has {path!r}; did you mean {close!r}?"
            return explain(job.document, ("search", "phases", index, "when", path), message)
    message = "no combination of earlier phases' arms meets this condition: the phase would never run"
    return explain(job.document, ("search", "phases", index, "when"), message)
