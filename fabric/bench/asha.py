"""Sixteen learning rates with ASHA against the full grid: the rate found, and the tokens it took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fabric.bench.measure import Figure, Measured, Sample, Setting
from fabric.bench.work import job, scratch

LOWEST, HIGHEST = 2e-4, 5e-2
N_RATES, STEPS, SEEDS = 16, 150, 3
QUICK_RATES, QUICK_STEPS, QUICK_SEEDS = 4, 9, 1
SCHEDULERS: dict[str, dict[str, Any]] = {
    "grid": {"kind": "fifo"},
    "asha": {"kind": "asha", "reduction_factor": 3},
    "asha, synchronous": {"kind": "asha", "reduction_factor": 3, "sync": True},
}


def rates(n: int) -> list[float]:
    """Log-spaced learning rates of three digits."""
    return [float(f"{LOWEST * (HIGHEST / LOWEST) ** (i / (n - 1)):.2e}") for i in range(n)]


def run(setting: Setting) -> Measured:
    """Every repeat has a tuning seed of its own: timing is not what is measured, but the order of arrival counts.

    A rate agrees when it is the grid's, or when its trials' mean lies inside the 95 % interval of the grid's.
    """
    n_rates = QUICK_RATES if setting.quick else N_RATES
    tokens: dict[str, list[float]] = {name: [] for name in SCHEDULERS}
    agreed: dict[str, list[float]] = {name: [] for name in SCHEDULERS if name != "grid"}
    found = []
    for number in range(setting.repeats):
        outcomes = {}
        for name, scheduler in SCHEDULERS.items():
            outcomes[name] = _tune(scheduler, 1000 + number, setting)
            tokens[name].append(outcomes[name]["tokens"])
        for name in agreed:
            agreed[name].append(float(agrees(outcomes[name], outcomes["grid"])))
        found.append({name: outcome["rate"] for name, outcome in outcomes.items()})
    sides = {name: Sample(tuple(values)) for name, values in tokens.items()}
    figures = {}
    for name, values in agreed.items():
        fewer = sides["grid"].median / sides[name].median
        both = {k: sides[k] for k in ("grid", name)}
        figures[f"{name}: tokens"] = Figure(fewer, "x fewer", both, (">=", 2.5))
        right = Sample(tuple(values))
        share = sum(values) / len(values)
        figures[f"{name}: right rate"] = Figure(share, "of the repeats", {"agreed": right}, (">=", 1.0))
    return Measured(figures, "1 a trial", {"rates": rates(n_rates), "chosen": found, "n_trials": n_rates})


def _tune(scheduler: Mapping[str, Any], seed: int, setting: Setting) -> dict[str, Any]:
    """The rate chosen, the main trials' losses and the tokens the tuning trials took."""
    from fabric.store import Store
    from fabric.sweeping import sweep

    n_rates, steps, seeds = (
        (QUICK_RATES, QUICK_STEPS, QUICK_SEEDS) if setting.quick else (N_RATES, STEPS, SEEDS)
    )
    axis = {"path": "train.optimizer.lr", "values": rates(n_rates), "role": "nuisance"}
    search = {
        "mode": "grid",
        "axes": [axis],
        "seeds": seeds,
        "tuning_seeds": [seed],
        "scheduler": dict(scheduler),
    }
    with scratch(setting, "asha") as name:
        body = job(name, steps=steps, search=search, quick=setting.quick)
        end = sweep(body, out=setting.out)
        if end.failed:
            raise RuntimeError(f"trials failed: {', '.join(end.failed)}")
        store = Store(end.root)
        return _outcome(store, end.study, body)


def _outcome(store: Any, study: str, body: Mapping[str, Any]) -> dict[str, Any]:
    plan, rate = store.study(study, "plan-0"), store.study(study, "rate-0-0")
    per_step = body["base"]["train"]["batch_size"] * body["base"]["data"]["seq_len"]
    ids = [trial["id"] for trial in plan["arms"][0]["tuning"]]
    steps = [(store.trial(i).status() or _never(i)).step for i in ids]
    ends = [store.trial(t["id"]).status() for t in rate.get("trials", [])]
    losses = [s.final["val_loss"] for s in ends if s is not None and s.final]
    return {"rate": rate["point"], "losses": losses, "tokens": float(per_step * sum(steps))}


def _never(trial: str) -> Any:
    raise RuntimeError(f"trial {trial} was planned and never trained")


def agrees(mine: Mapping[str, Any], grid: Mapping[str, Any]) -> bool:
    """Whether a chosen rate is the grid's, or no worse than its 95 % interval says the grid's may be."""
    if mine["rate"] == grid["rate"]:
        return True
    losses = [loss for loss in mine["losses"] if loss is not None]
    reference = [loss for loss in grid["losses"] if loss is not None]
    if len(losses) < len(mine["losses"]) or len(reference) < 2 or not losses:
        return False
    from scipy.stats import t

    n = len(reference)
    mean = sum(reference) / n
    spread = (sum((x - mean) ** 2 for x in reference) / (n - 1)) ** 0.5
    return bool(sum(losses) / len(losses) <= mean + t.ppf(0.975, n - 1) * spread / n**0.5)
