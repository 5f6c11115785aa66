"""SmolLM2-135M, where it has been fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fabric.data.smollm2 import GGUF_NAME
from kernels.folders import default_cache_root


def smollm2() -> Path | None:
    """SmolLM2's file: where FABRIC_SMOLLM2 says, or in the user's cache folder."""
    named = os.environ.get("FABRIC_SMOLLM2")
    places = [Path(named)] if named else [default_cache_root() / "downloads" / GGUF_NAME]
    return next((p for p in places if p.is_file()), None)


SMOLLM2_IS_HERE = pytest.mark.skipif(
    smollm2() is None,
    reason="SmolLM2's file is not here: `fabric data get smollm2` fetches it and prints its path; "
    "set FABRIC_SMOLLM2 to that",
)
