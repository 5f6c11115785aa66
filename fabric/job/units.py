"""Numbers as people write them in YAML: `2M` tokens, `1.5e6`, `30s`, `5min`."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

MOST_COUNT = 10**15
_COUNT = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z]*)\s*$")


def _scaled(value: Any, units: dict[str, Any], example: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, str):
        return value
    match = _NUMBER.match(value)
    if not match or match[2].lower() not in units:
        raise ValueError(
            f"{value!r} is not a number with a unit of {sorted(u for u in units if u)}; write {example}"
        )
    return float(match[1].replace("_", "")) * units[match[2].lower()]


def parse_count(value: Any) -> Any:
    """`2M` -> 2000000, `1e6` -> 1000000; a number passes through.

    Raises ValueError when it is not a whole number, or above `MOST_COUNT`.
    """
    number = _scaled(value, _COUNT, "200k, 2M or 2000000")
    if isinstance(number, int | float) and number > MOST_COUNT:
        raise ValueError(f"{value!r} is more than the {human_count(MOST_COUNT)} (10**15) that a count may be")
    if isinstance(number, float) and math.isfinite(number):
        if number != int(number):
            raise ValueError(f"{value!r} is not a whole number")
        return int(number)
    return number


def parse_seconds(value: Any) -> Any:
    """`5min` -> 300.0; a number is seconds already."""
    return _scaled(value, _SECONDS, "30s, 5min or 300")


def parse_float(value: Any) -> Any:
    """YAML 1.1 reads `3e-4` as text; take it as the number it is. An integer stays one."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a number") from None
    return value


Count = Annotated[int, BeforeValidator(parse_count)]
Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Real = Annotated[float, BeforeValidator(parse_float)]
Number = Annotated[int | float, BeforeValidator(parse_float)]  # knows `1` from `1.0`


def human_count(n: float) -> str:
    """1_234_567 -> '1.23M'."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"


def human_bytes(n: float) -> str:
    """Bytes in binary units: 47185920 -> '45.0 MiB'."""
    for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(n) >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} B"


def human_seconds(s: float) -> str:
    """3725 -> '1h02m', 65 -> '1m05s', 3.2 -> '3.2s'."""
    if s >= 3600:
        return f"{int(s // 3600)}h{int(s % 3600 // 60):02d}m"
    if s >= 60:
        return f"{int(s // 60)}m{int(s % 60):02d}s"
    return f"{s:.1f}s"
