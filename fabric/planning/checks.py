"""Axes that undo each other or change nothing: errors before anything trains, for rows would be mislabelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fabric.job.document import JobError
from fabric.job.load import Configuration, Job, Override
from fabric.planning.expand import Arm
from fabric.planning.match import solved_paths

Configured = Callable[[tuple[Override, ...]], Configuration]


def contains(outer: str, inner: str) -> bool:
    """Whether setting `outer` replaces what `inner` sets: the same path, or one around it, or a model by weights."""
    around = "model" if outer == "model.from" else outer
    return inner == outer or inner.startswith(around + ".")


def check_overlaps(arms: Sequence[Arm]) -> None:
    """Raise JobError where one of an arm's own overrides replaces an earlier one's."""
    for arm in arms:
        for n, later in enumerate(arm.overrides):
            for earlier in arm.overrides[:n]:
                if contains(later.path, earlier.path):
                    raise JobError(
                        [
                            f"{later.mark}: in arm {arm.name!r}, {later.path} replaces {earlier.path}, which is set "
                            f"before it ({earlier.mark}); list the axis of {later.path} first, or use arms"
                        ]
                    )


def check_match(job: Job, arms: Sequence[Arm]) -> None:
    """Raise JobError where an arm sets the width that `search.match` solves."""
    what = job.config.search.match
    for arm in arms:
        for override in arm.overrides:
            if override.path in solved_paths(what):
                raise JobError(
                    [
                        f"{override.mark}: arm {arm.name!r} sets {override.path}, which search.match: {what} solves "
                        "in every arm; leave one of them out"
                    ]
                )


def check_effects(
    arms: Sequence[Arm], configured: Configured, trial_id: Callable[[Configuration], str]
) -> None:
    """Raise JobError where arms differ in settings that are no part of a trial: they would be one and the same run."""
    seen: dict[str, tuple[Arm, Configuration]] = {}
    for arm in arms:
        try:
            configuration = configured(arm.overrides)
        except JobError:
            continue  # it fits what an earlier phase may adopt
        other, before = seen.setdefault(trial_id(configuration), (arm, configuration))
        if before != configuration and arm.overrides:
            last = arm.overrides[-1]
            raise JobError(
                [
                    f"{last.mark}: arms {other.name!r} and {arm.name!r} would be one and the same training run: "
                    f"{last.path} changes no number of it (how it is measured, split up or compiled is not compared)"
                ]
            )


def check_objective(base: Configuration, arms: Sequence[Arm], configured: Configured) -> None:
    """Raise JobError where an arm or a tuned point has another objective than those it is compared with: losses would
    not compare. All arms of a phase may have another one than the base."""
    path = "train.objective"
    try:
        first = configured(arms[0].overrides).train.objective if arms else base.train.objective
    except JobError:
        first = base.train.objective  # it fits what an earlier phase may adopt
    for arm in arms:
        for override in arm.overrides:
            if not (contains(path, override.path) or contains(override.path, path)):
                continue
            try:
                objective = configured(arm.overrides).train.objective
            except JobError:
                continue  # it fits what an earlier phase may adopt
            if objective != first:
                raise JobError(
                    [
                        f"{override.mark}: {arm.name!r} changes {path}: losses of different questions cannot be "
                        "compared; set it in the base or in all arms of a phase, and make a job of its own for another "
                        "one"
                    ]
                )


def check_points(job: Job, points: Sequence[Arm], arms: Sequence[Arm]) -> None:
    """Raise JobError when two points of the nuisance axes are the same, or an arm sets what they set."""
    seen: dict[str, str] = {}
    for point in points:
        configuration = job.configure(point.overrides)
        key = "".join(
            s.model_dump_json() for s in (configuration.model, configuration.data, configuration.train)
        )
        key += "" if configuration.start is None else configuration.start.key
        if key in seen and point.overrides:
            message = f"{point.name} is the same as {seen[key]}"
            raise JobError([f"{point.overrides[-1].mark}: search.axes: {message}; list each value once"])
        seen[key] = point.name
    tuned = {o.path for p in points for o in p.overrides}
    for arm in arms:
        for override in arm.overrides:
            if any(contains(path, override.path) for path in tuned):
                message = f"arm {arm.name!r} sets {override.path}, which a nuisance axis tunes in every arm"
                raise JobError([f"{override.mark}: {message}; take it out of one of them"])


def overruled(points: Sequence[Arm], arms: Sequence[Arm]) -> list[str]:
    """What arms write inside a mapping and a nuisance axis replaces, in sentences."""
    tuned = sorted({o.path for p in points for o in p.overrides})
    found = []
    for arm in arms:
        for override in arm.overrides:
            for path in tuned:
                given = _inside(override, path)
                if given is not None:
                    found.append(
                        f"arm {arm.name!r} writes {path} {given}, which is not used: a nuisance axis tunes it"
                    )
    return found


def _inside(override: Override, path: str) -> Any:
    """The value at `path` inside what an override puts around it; None where it puts none there."""
    if path == override.path or not contains(override.path, path):
        return None
    value = override.value
    for key in path.removeprefix(override.path + ".").split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
