"""Records as JSON objects: NaN is null, and what is damaged counts as absent and may be written again."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

from fabric.store.objects import Objects

SCHEMA_VERSION = 1


def dump_json(value: Any, indent: int | None = None) -> bytes:
    """JSON with NaN and infinities as null (their keys are listed under `non_finite` in a mapping)."""
    return json.dumps(_finite(value), indent=indent, sort_keys=False, allow_nan=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        clean = {str(k): _finite(v) for k, v in value.items()}
        bad = [str(k) for k, v in value.items() if isinstance(v, float) and not math.isfinite(v)]
        return {**clean, "non_finite": bad} if bad else clean
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(objects: Objects, key: str) -> Any:
    """The value at a key; None where there is none, or none that can be read."""
    try:
        return json.loads(objects.get(key) or b"")
    except ValueError:
        return None


def read_record(objects: Objects, key: str) -> dict[str, Any] | None:
    """The mapping at a key; None where there is none (no record is empty): what it described is done again."""
    body = read_json(objects, key)
    return body if isinstance(body, dict) and body else None


def create_record(objects: Objects, key: str, body: Mapping[str, Any]) -> bool:
    """Write a mapping where there is none; False where there is one. A damaged one (a disk's doing: writes are
    whole) is replaced, with a warning."""
    data = dump_json(body, indent=1)
    if objects.create(key, data):
        return True
    if read_record(objects, key) is not None:
        return False
    warnings.warn(f"{key} was damaged and is written again", RuntimeWarning, stacklevel=2)
    objects.put(key, data)
    return True
