"""A re-run of a finished sweep, in a process of its own."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from fabric.bench.measure import Figure, Measured, Setting, in_turn
from fabric.bench.process import fabric, python
from fabric.bench.work import job, scratch, seeds_of_one_arm, timed

N_TRIALS = 12


def run(setting: Setting) -> Measured:
    """The job's trials are trained first, inline; a bare interpreter is measured beside it."""
    from fabric.sweeping import sweep

    n = 2 if setting.quick else N_TRIALS
    with scratch(setting, "rerun") as name, tempfile.TemporaryDirectory() as folder:
        body = job(name, steps=4, search=seeds_of_one_arm(n), quick=setting.quick)
        sweep(body, out=setting.out, runner="inline")
        file = Path(folder) / "job.yaml"
        file.write_text(json.dumps(body))  # JSON is YAML
        sides = in_turn(
            {
                "re-run": lambda: timed(lambda: fabric("sweep", str(file), "--out", str(setting.out))),
                "bare python": lambda: timed(lambda: python("-c", "pass")),
            },
            setting.repeats,
        )
    figures = {"re-run": Figure(sides["re-run"].median, "s", sides, ("<=", 10.0))}
    return Measured(figures, "1", {"n_trials": n})
