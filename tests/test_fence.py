"""Who may import whom, and what a verb's start may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for room in ("fabric", "models", "kernels") for p in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    names = imported(path)
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "kernels":
        assert not names & {"models", "fabric"}
    if relative.parts[0] == "models":
        assert "fabric" not in names
    if relative.parts[:2] != ("fabric", "runtime"):
        assert "ray" not in names
    if not (relative.parts[0] == "kernels" and relative.name == "triton.py"):
        assert "triton" not in names


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "from typer.testing import CliRunner\nfrom fabric.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0"
    )
    assert not modules_after(code) & {"torch", "ray", "numpy", "transformers", "pydantic_core"}


def test_a_trial_process_imports_torch_and_ours_only() -> None:
    heavy = {
        "transformers",
        "datasets",
        "deepspeed",
        "bitsandbytes",
        "tokenizers",
        "pyarrow",
        "scipy",  # of tasks' scores: by who has tasks or minimal pairs
        "ray",
        "matplotlib",
    }
    assert not modules_after("import fabric.runtime.worker") & heavy
