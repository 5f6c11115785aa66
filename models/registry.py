"""What can be put into a model: every registered part, with one line about it."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

from models.config import FFNConfig, MixerConfig
from models.parts import Part, parts_in

FAMILIES: dict[str, tuple[str, type[Part]]] = {
    "mixer": ("models.mixers", MixerConfig),
    "ffn": ("models.ffns", FFNConfig),
}


class PartLine(NamedTuple):
    """A part as listed: its YAML kind, what its docstring says first, the arXiv ids named there."""

    kind: str
    summary: str
    arxiv: str


def parts() -> dict[str, list[PartLine]]:
    """All parts of a model by family, in alphabetical order."""
    return {family: [_line(*item) for item in parts_in(*where).items()] for family, where in FAMILIES.items()}


def _line(kind: str, config_class: type[Part]) -> PartLine:
    summary = (inspect.getdoc(config_class) or "").split("\n\n")[0].replace("\n", " ")
    return PartLine(kind, summary, ", ".join(re.findall(r"\d{4}\.\d{4,5}", summary)))
