"""Trials to rows: who counts, who is beside, and that the table says what the phase decided."""

import json
import math
from io import StringIO

import numpy as np
import pytest
from analysis_kit import RATES, phase_rows, row, run_study
from rich.console import Console

import fabric
from fabric.analysis.collect import nested
from fabric.analysis.noise import seed_spread
from fabric.analysis.table import aggregate
from fabric.printing import print_results

BASE = {"p": "base"}


def by_arm(rows, **options):
    return {r.arm: r for r in aggregate(rows, BASE, **options)}


def test_only_finished_main_runs_are_averaged():
    stopped = {"state": "stopped", "reason": {"kind": "stopped", "rung": 1000}}
    rows = [
        *(row("base", s, 3.0 + s / 100) for s in range(3)),
        row("x", 0, 3.0),
        row("x", 1, 9.0, **stopped),
        row("x", 2, None, state="failed", reason={"kind": "failed"}),
        row("x", 1000, 1.0, role="tuning"),
        row("x", 1000, 8.0, role="tuning", lr=9.0, **stopped),
    ]
    x = by_arm(rows)["x"]
    assert (x.n, x.result.mean) == (1, 3.0)
    assert x.counts == {"finished": 1, "censored": 1, "failed": 1}
    assert x.tuning_counts == {"finished": 1, "censored": 1}
    assert x.censored == ((2e3, 9.0),)
    assert x.verdict == "undecided, n too small"
    assert x.lr == 4e-3


def test_outcomes():
    assert row("a").outcome == "finished"
    assert row("a", reason={"kind": "converged"}).outcome == "finished"
    assert row("a", loss=None, reason={"kind": "diverged"}).outcome == "diverged"
    assert row("a", loss=math.nan).outcome == "diverged"  # the final evaluation overflowed
    failed = row("a", loss=None, state="failed", reason={"kind": "failed", "message": "diverged"})
    assert failed.outcome == "failed"


def test_verdicts_need_the_jobs_margin():
    rows = phase_rows("p", {"base": 3.0, "x": 3.0})
    cheap = [r if r.arm == "base" else row("x", r.seed, r.metrics["val_loss"], state_bytes=1.0) for r in rows]
    assert by_arm(cheap)["x"].verdict == "within noise"
    assert by_arm(cheap, margin=0.1)["x"].verdict == "adopted for cost"
    assert by_arm(cheap, margin=0.1)["x"].winner
    assert by_arm(cheap)["base"].winner


def test_alpha_is_used():
    rows = phase_rows("p", {"base": 3.0, "x": 3.02}, noise=0.01)
    p = by_arm(rows)["x"].comparison.p
    assert by_arm(rows, alpha=p * 1.01)["x"].verdict == "worse"
    assert by_arm(rows, alpha=p * 0.99)["x"].verdict == "within noise"


def test_higher_is_better_metrics_are_turned_round():
    rows = [
        row(arm, s, metrics={"recall_accuracy": value + s / 1000})
        for arm, value in (("base", 0.5), ("x", 0.7))
        for s in range(4)
    ]
    x = by_arm(rows, metric="recall_accuracy")["x"]
    assert x.verdict == "better"
    assert x.comparison.diff == pytest.approx(0.2)
    assert 0 < x.comparison.low <= x.comparison.high
    with pytest.raises(ValueError, match="'step'"):
        aggregate(rows, BASE, "step")


def test_equal_budgets_are_read_off_the_curves():
    slow = [(1e3, 2e9, 4.0, 4.0), (2e3, 4e9, 8.0, 3.0)]
    fast = [(1e3, 1e9, 1.0, 4.2), (2e3, 2e9, 2.0, 3.4)]
    rows = [row("base", 0, 3.0, history=slow), row("x", 0, 3.4, history=fast)]
    base, x = by_arm(rows)["base"], by_arm(rows)["x"]
    assert base.budget == {"tokens": 2e3, "flops": 2e9, "seconds": 2.0}
    assert (base.equal["tokens"], x.equal["tokens"]) == (3.0, 3.4)
    assert (base.equal["flops"], x.equal["flops"]) == (4.0, 3.4)
    assert base.equal["seconds"] is None  # before its first evaluation
    assert x.equal["seconds"] == 3.4


def test_an_arm_that_is_running_has_no_verdict_yet():
    rows = [row("base", 0), row("x", 0, None, state="running", reason=None)]
    found = by_arm(rows)
    assert found["x"].verdict == "running"
    assert not found["base"].winner


def test_two_runs_of_one_seed_are_a_mistake():
    with pytest.raises(ValueError, match="two main runs with seed 0"):
        aggregate([row("base", 0), row("base", 0, 3.1)], BASE)


def test_nested_overrides():
    found = nested({"m.mixer": {"kind": "mla", "n": 4}, "m.norm": "pre", "m.mixer.n": 2, "m.norm2": 1})
    assert found == {"m.mixer": {"kind": "mla", "n": 2}, "m.norm": "pre", "m.norm2": 1}
    assert nested({"a.b": 1, "a.c": 2, "a.b": 3}) == {"a.b": 3, "a.c": 2}  # noqa: F601


# ---- whole studies

PHASES = [
    {
        "name": "norm",
        "keep": 2,
        "axes": [{"path": "model.norm_placement", "values": ["pre", "post", "sandwich"]}],
    },
    {"name": "qk", "axes": [{"path": "model.mixer.qk_norm", "values": ["none", "head"]}]},
    {"name": "window", "axes": [{"path": "model.mixer.window", "values": [None, 16, 8]}]},
]
EFFECT = {"pre": 0.0, "post": -0.2, "sandwich": 0.1, None: 0.0, 16: 0.002, 8: 0.3}


def loss_of(trial):
    noise = np.random.default_rng([trial.seed, *trial.id.encode()]).standard_normal() * 0.004
    model = trial.spec.model  # not the arm's name: phases share trials
    return 3 + trial.seed * 0.01 + noise + EFFECT[model.norm_placement] + EFFECT[model.mixer.window]


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
@pytest.mark.parametrize("select", [{}, {"margin": 0.05}, {"margin": 0.05, "alpha": 0.2}])
def test_the_table_agrees_with_the_decisions(tmp_path, n_seeds, select):
    search = {"mode": "phases", "seeds": n_seeds, "phases": PHASES, "select": select}
    run_study(tmp_path, search, loss_of)
    found = fabric.results(tmp_path)
    assert [d["phase"] for d in found.decisions] == ["norm", "qk", "window"]
    for decision in found.decisions:
        rows = {r.arm: r for r in found.arms if r.phase == decision["phase"]}
        assert {a: r.verdict for a, r in rows.items()} == decision["verdict"]
        assert [a for a, r in rows.items() if r.winner] == [decision["winner"]]
        assert {a for a, r in rows.items() if r.goes_on} == set(decision["kept"])
        for arm, comparison in decision["comparisons"].items():
            assert json.loads(json.dumps(rows[arm].to_json()["comparison"])) == comparison
    assert [len(d["kept"]) for d in found.decisions] == [2, 1, 1]
    print_results(found, Console(file=(said := StringIO()), width=200))
    other = next(a for a in found.decisions[0]["kept"] if a != found.decisions[0]["winner"])
    assert f"); {other} goes on too\n" in said.getvalue()
    if n_seeds > 2:
        expected = "window=16" if select else "window=none"  # cheaper, and within the margin
        assert found.winner.arm == expected
        assert found.adopted["model.norm_placement"] == "post"
    assert found.winner.means["test_loss"] == pytest.approx(found.winner.means["val_loss"] + 0.01)


@pytest.mark.parametrize("broken", ["pre", "post", "sandwich"])
@pytest.mark.parametrize("how", [None, math.nan])
def test_the_table_agrees_when_an_arm_does_not_run_through(tmp_path, broken, how):
    """Also when it is the baseline ("pre")."""

    def loss(trial):
        return how if f"={broken}" in trial.arm else loss_of(trial)

    search = {"mode": "phases", "seeds": 3, "phases": PHASES[:1]}
    run_study(tmp_path, search, loss)
    found = fabric.results(tmp_path)
    (decision,) = found.decisions
    rows = {r.arm.split("=")[1]: r for r in found.arms}
    assert rows[broken].verdict == ("failed" if how is None else "diverged")
    assert rows[broken].counts == {"failed" if how is None else "diverged": 3} or how is None
    assert [r.arm for r in found.arms if r.winner] == [decision["winner"]]
    for name, r in rows.items():
        if name != broken:
            assert r.verdict == decision["verdict"][r.arm]


def test_rates_warn_and_are_measured(tmp_path):
    """Five rates on two tuning seeds: sensitivity with the diverged one at ln V, and a warning at the edge."""

    def loss(trial):
        lr = trial.spec.train.optimizer.lr
        return math.nan if lr > 1e-2 else 3.0 + 10 * lr

    search = {
        "mode": "grid",
        "seeds": 3,
        "tuning_seeds": 2,
        "axes": [RATES, {"path": "model.norm_placement", "values": ["pre", "post"]}],
    }
    run_study(tmp_path, search, loss)
    found = fabric.results(tmp_path)
    assert len(found.warnings) == 2
    assert all("at the edge of the grid; extend the grid below it" in w for w in found.warnings)
    losses = [3.01, 3.02, 3.04, 3.08, math.log(257)]
    expected = np.mean(losses) - 3.01
    assert [r.means["lr_sensitivity"] for r in found.arms] == pytest.approx([expected] * 2)
    assert {r.lr for r in found.arms} == {1e-3}


def test_scaling_is_fitted_where_the_job_says_so(tmp_path):
    sizes = [
        {"name": f"w{w}", "set": {"model.d_model": w, "model.ffn.d_ff": 2 * w}} for w in (16, 24, 32, 48, 64)
    ]

    def loss(trial):
        from models import n_params

        return 1.5 + 60 * n_params(trial.spec.model) ** -0.4 + 1e-3 * trial.seed

    search = {"mode": "grid", "seeds": 2, "fit": "params", "axes": [{"arms": sizes}]}
    run_study(tmp_path / "five", search, loss)
    scaling = fabric.results(tmp_path / "five").scaling
    assert scaling.held_out.inside
    assert scaling.held_out.predicted == pytest.approx(scaling.held_out.measured, rel=0.01)
    assert json.dumps(scaling.to_json(), allow_nan=False)
    few = {**search, "axes": [{"arms": sizes[:3]}]}
    run_study(tmp_path / "three", few, loss)
    found = fabric.results(tmp_path / "three")
    assert found.scaling is None
    assert found.warnings == ["no scaling fit: 3 sizes have results, 4 are needed"]


def test_seed_spread_is_pooled_over_groups(tmp_path):
    search = {
        "mode": "grid",
        "seeds": 3,
        "axes": [{"path": "model.norm_placement", "values": ["pre", "post"]}],
    }
    study = run_study(tmp_path, search, lambda t: 3.0 + 0.1 * t.seed * (2 if "post" in t.arm else 1))
    assert seed_spread(study.store, study) == pytest.approx(math.sqrt((0.1**2 + 0.2**2) / 2))
    (tmp_path / "trials" / study.store.trial_ids()[0] / "trial.json").write_text('{"other": "version"}')
    assert seed_spread(study.store, study) > 0
