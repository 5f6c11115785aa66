"""What a sweep costs before and around its steps: imports, Ray, actors, trials, reports, checkpoints; a budget each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fabric.bench.measure import Figure, Measured, Sample, Setting, in_turn
from fabric.bench.process import call, fabric, python
from fabric.bench.training import OURS, Training, decoder, made
from fabric.bench.work import job, prepared_spec, scratch, seeds_of_one_arm, timed

# What a trial's process imports, without Ray.
TRIAL_IMPORTS = "import torch; import fabric.runtime.worker"
IMPORTS = {"bare python": "pass", "torch": "import torch", "trial": TRIAL_IMPORTS}
LINE = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \| ( *)(\S+)")
# Budgets in seconds.
IMPORT, BEYOND_TORCH, HELP, CHECKPOINT = 3.5, 1.5, 0.3, 1.0
AROUND_A_TRIAL = {
    "ray start": (8.0, "its import included, to a cluster of this machine's own, whose workers still import"),
    "actor start": (
        5.0,
        "from the first trial's hand-over to its call in an actor, its worker's imports included",
    ),
    "first step": (2.0, "from a trial's call in a fresh actor to its first step done and evaluated"),
    "further trial": (0.5, "from a trial's begin to the next one's on a warm actor, its one step left out"),
    "report": (0.05, "from a step's row to the trial going on"),
}
N_SHORT, N_REPORTS, QUICK_SHORT, QUICK_REPORTS = 6, 40, 3, 4
SAVED = decoder(256, 11, 256, 4096)  # 9.9 M parameters
QUICK_SAVED = decoder(64, 1, 64, 256)


def run(setting: Setting) -> Measured:
    """Every measurement of imports and of Ray is a process of its own."""
    setting.say("imports")
    imports = in_turn(
        {
            **{k: (lambda code=code: timed(lambda: python("-c", code))) for k, code in IMPORTS.items()},  # type: ignore[misc]
            "help": lambda: timed(lambda: fabric("--help")),
        },
        setting.repeats,
    )
    dearest = beyond_torch(python("-X", "importtime", "-c", TRIAL_IMPORTS).stderr)
    figures = _import_figures(imports, dearest) | _around_a_trial(setting) | _checkpoint(setting)
    return Measured(figures, "1", {"imports_beyond_torch": dearest})


def _import_figures(imports: Mapping[str, Sample], dearest: Mapping[str, float]) -> dict[str, Figure]:
    extra = Sample(tuple(a - b for a, b in zip(imports["trial"].values, imports["torch"].values)))
    most = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in list(dearest.items())[:3])
    beside = {k: imports[k] for k in ("trial", "torch", "bare python")}
    return {
        "a trial's imports": Figure(imports["trial"].median, "s", beside, ("<=", IMPORT)),
        "beyond torch": Figure(
            extra.median, "s", {"difference": extra}, ("<=", BEYOND_TORCH), f"most of it: {most}"
        ),
        "help": Figure(
            imports["help"].median, "s", {k: imports[k] for k in ("help", "bare python")}, ("<=", HELP)
        ),
    }


def beyond_torch(said: str) -> dict[str, float]:
    """Seconds by package of what was imported after torch, most first, out of `python -X importtime`.

    A package's modules count together, each without what it imports; torch's by its parts.
    """
    seconds: dict[str, float] = {}
    torch_is_in = False
    for own, _, indent, name in LINE.findall(said):
        if torch_is_in:
            parts = name.split(".")
            package = ".".join(parts[: 2 if parts[0] == "torch" else 1])
            seconds[package] = seconds.get(package, 0.0) + int(own) / 1e6
        torch_is_in = torch_is_in or (name == "torch" and not indent)
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _around_a_trial(setting: Setting) -> dict[str, Figure]:
    found: dict[str, list[float]] = {}
    n, steps = (QUICK_SHORT, QUICK_REPORTS) if setting.quick else (N_SHORT, N_REPORTS)
    for number in range(setting.repeats):
        setting.say(f"Ray, {number + 1} of {setting.repeats}")
        with scratch(setting, "breadth") as short, scratch(setting, "breadth") as reporting:
            once = {"times": 1, "val_tokens": 64}
            often = {"times": steps, "val_tokens": 64}
            task = {
                "short": _one_at_a_time(short, setting, n, 1, once),
                "reporting": _one_at_a_time(reporting, setting, 1, steps, often),
                "out": str(setting.out),
            }
            for name, seconds in call("fabric.runtime.probe:probe", task).items():
                found.setdefault(name, []).append(seconds)
    return {
        name: Figure(Sample(tuple(v)).median, "s", {name: Sample(tuple(v))}, ("<=", limit), note)
        for name, (limit, note) in AROUND_A_TRIAL.items()
        for v in (found[name],)
    }


def _one_at_a_time(
    name: str, setting: Setting, n: int, steps: int, evaluate: Mapping[str, Any]
) -> dict[str, Any]:
    """A job of `n` trials of `steps` steps, its token cache built."""
    body = job(
        name,
        steps=steps,
        search=seeds_of_one_arm(n),
        quick=setting.quick,
        evaluate=evaluate,
        resources={"max_concurrent": 1},
    )
    prepared_spec(body, setting)
    return body


def _checkpoint(setting: Setting) -> dict[str, Figure]:
    setting.say("checkpoint")
    model = QUICK_SAVED if setting.quick else SAVED
    with scratch(setting, "breadth") as name:
        task = {"folder": str(setting.out / name), "model": model, "times": setting.repeats}
        found = call("fabric.bench.breadth:checkpoint_seconds", task)
    sample = Sample(tuple(found["seconds"]))
    note = f"{found['n_params'] / 1e6:.1f} M parameters, {found['bytes'] / 2**20:.0f} MiB with AdamW's state, flushed"
    return {"checkpoint": Figure(sample.median, "s", {"checkpoint": sample}, ("<=", CHECKPOINT), note)}


def checkpoint_seconds(folder: str, model: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Seconds of each of some checkpoints, in a process of its own; their parameters and bytes."""
    from fabric.store import Store
    from fabric.train.checkpoint import save_checkpoint, unique_tensors

    side = made(training := Training(OURS, "fp32", False, model, 1, 16, 1))
    side.step(training.rows_BT1(0))
    attempt = Store(folder).trial("checkpoint").new_attempt({})
    state: dict[str, Any] = {"loop": {}, "rng": {}, "scaler": None}

    def save(step: int) -> None:
        save_checkpoint(
            attempt, step, unique_tensors(side.model), side.optimizer.state_dict(), state, keep_last=1
        )

    seconds = [timed(lambda step=step: save(step)) for step in range(1, times + 1)]  # type: ignore[misc]
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    n_params = sum(p.numel() for p in side.model.parameters())
    return {"seconds": seconds, "n_params": n_params, "bytes": sum(f.stat().st_size for f in files)}
