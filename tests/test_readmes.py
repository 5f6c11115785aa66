"""Every room's README example runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["bench", "job", "planning", "data", "train", "evaluate", "store", "analysis", "runtime"]
READMES = [ROOT / "fabric" / r / "README.md" for r in ROOMS] + [
    ROOT / r / "README.md" for r in ("models", "kernels")
]


def examples(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.S)


@pytest.mark.parametrize("path", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_example_runs(path: Path, tmp_path: Path) -> None:
    blocks = examples(path)
    assert len(blocks) == 1, "a room's README has one example"
    assert "assert" in blocks[0], "an example shows what comes out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", blocks[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
