"""One YAML says what to compare; `fabric.sweep` trains every arm and says which differences are real.

Every verb of the command line is one function here; names load at first use, so that `import fabric` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric.bench import bench
    from fabric.comparing import compare
    from fabric.doctoring import doctor
    from fabric.exporting import export, generate
    from fabric.inspecting import describe_data, get_data, list_parts
    from fabric.job.document import JobError
    from fabric.measuring import measure, measure_all, measure_with_harness
    from fabric.planning.report import plan
    from fabric.results import results, status
    from fabric.running import run
    from fabric.runtime.submit import submit
    from fabric.sweeping import sweep

_HOME = {
    "JobError": "fabric.job.document",
    "bench": "fabric.bench",
    "compare": "fabric.comparing",
    "describe_data": "fabric.inspecting",
    "doctor": "fabric.doctoring",
    "export": "fabric.exporting",
    "generate": "fabric.exporting",
    "get_data": "fabric.inspecting",
    "list_parts": "fabric.inspecting",
    "measure": "fabric.measuring",
    "measure_all": "fabric.measuring",
    "measure_with_harness": "fabric.measuring",
    "plan": "fabric.planning.report",
    "results": "fabric.results",
    "run": "fabric.running",
    "status": "fabric.results",
    "submit": "fabric.runtime.submit",
    "sweep": "fabric.sweeping",
}

__all__ = [
    "JobError",
    "bench",
    "compare",
    "describe_data",
    "doctor",
    "export",
    "generate",
    "get_data",
    "list_parts",
    "measure",
    "measure_all",
    "measure_with_harness",
    "plan",
    "results",
    "run",
    "status",
    "submit",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fabric' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps `fabric.results` the verb when the module of that name is imported (the import system binds it here)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
