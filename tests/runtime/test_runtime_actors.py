"""Sweeps on the run's one Ray: reuse of actors, retries, slow endings."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from drill_kit import ASHA, STEP, job, rates
from session_kit import ARMS, one_way, tune_sweep

import fabric
from fabric.planning.cost import peak_memory_bytes
from fabric.results import status
from fabric.runtime.worker import fabric_trial
from fabric.store import Store
from models import n_params

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def _workers_know_this_module():
    """Trainables below travel by value: a worker's path has no tests on it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def fails_once(config: dict[str, Any]) -> None:
    """Every trial with gqa fails in the middle of its first attempt, as a crash in a kernel would."""
    from fabric.train.step import Stepper

    update = Stepper.update

    def update_or_fail(self: Any, multiplier: float) -> Any:
        update_or_fail.done += 1  # type: ignore[attr-defined]
        if update_or_fail.done == 5:  # type: ignore[attr-defined]
            raise RuntimeError("a part that raises")
        return update(self, multiplier)

    update_or_fail.done = 0  # type: ignore[attr-defined]
    trial = Store(config["task"]["store"]).trial(config["task"]["trial"])
    if config["arm"] == "gqa" and not trial.attempt_numbers():
        Stepper.update = update_or_fail  # type: ignore[method-assign]
    try:
        fabric_trial(config)
    finally:
        Stepper.update = update  # type: ignore[method-assign]


@pytest.mark.slow
def test_losses_do_not_depend_on_what_ran_before_in_the_actor(ray_session, tmp_path):
    logged = {"train": {"log_every_steps": 1, "checkpoint": {"every_seconds": None}}}
    forwards = one_way(tmp_path, ARMS, **logged)
    backwards = one_way(tmp_path, ARMS[::-1], **logged)
    first, _ = tune_sweep(forwards, tmp_path / "a", fails_once)
    second, heard = tune_sweep(backwards, tmp_path / "b")
    ids = heard.order[: len(ARMS)]
    assert list(first.trials) == ids[::-1], "the trials were to run in the opposite order"
    pids: dict[str, set[int]] = {"a": set(), "b": set()}
    for trial in ids:
        rows = []
        for name, study in (("a", first), ("b", second)):
            record = study.store.trial(trial)
            rows.append([(r["step"], r["train_loss"], r.get("val_loss")) for r in record.metrics()])
            for n in record.attempt_numbers():
                pids[name].add((record.provenance(n) or {})["pid"])
        assert rows[0] == rows[1], first.trials[trial].arm
        assert len(rows[0]) == 12
    assert len(pids["b"]) == 1, "one actor for all trials"
    assert len(pids["a"]) == 2, "one before and one after the failed trial"
    failed = next(t for t in first.trials.values() if t.arm == "gqa")
    assert len(first.store.trial(failed.id).attempt_numbers()) == 2


def test_both_actors_live_through_the_end_of_a_phase(ray_session, tmp_path):
    """Three trials a phase on two slots: one actor is idle before each phase's end, and both work in the next one.

    The first phase's trials are long enough for a second worker to start beside them.
    """
    short = {"train.tokens": 30 * STEP}
    norms = [{"name": name, "set": {"model.mixer.qk_norm": name, **short}} for name in ("none", "head")]
    widths = [{"name": f"d{n}", "set": {"model.ffn.d_ff": n, **short}} for n in (64, 96)]
    phases = [
        {"name": "a", "axes": [{"path": "model.norm_placement", "values": ["pre"]}]},
        {"name": "b", "axes": [{"arms": norms}]},
        {"name": "c", "axes": [{"arms": widths}]},
    ]
    body = job(tmp_path, steps=250, search={"mode": "phases", "seeds": 3, "phases": phases})
    study, _ = tune_sweep(body, tmp_path / "out", slots=2)
    pids: dict[str, set[int]] = {}
    for trial in study.trials.values():
        pids.setdefault(trial.phase, set()).add(study.registry.record(trial).provenance(1)["pid"])
    assert set(pids) == {"a", "b", "c"}
    assert pids["a"] == pids["b"] == pids["c"]
    assert len(pids["a"]) == 2


def test_a_trials_peak_memory_does_not_depend_on_its_place_and_is_as_predicted(ray_session, tmp_path):
    wide = {"d_model": 256, "n_layers": 4, "ffn": {"kind": "swiglu", "d_ff": 512}}
    axis = {"path": "model.norm_placement", "values": ["pre"]}
    body = job(tmp_path, steps=3, search={"mode": "grid", "seeds": 4, "axes": [axis]}, model=wide)
    study, _ = tune_sweep(body, tmp_path / "out")
    peaks = [study.registry.final(trial)["peak_memory_bytes"] for trial in study.trials.values()]
    state = 16 * n_params(study.base.model)  # weights, gradients and AdamW's two moments in fp32
    assert len(peaks) == 4
    assert state > 40 * 2**20
    assert max(peaks) - min(peaks) < state / 4
    predicted = peak_memory_bytes(next(iter(study.trials.values())).spec)
    assert predicted == pytest.approx(peaks[-1], rel=0.10)


def test_next_trial_begins_at_once(ray_session, tmp_path):
    body = one_way(tmp_path, [{"name": "mha"}])
    body["search"]["seeds"] = 6
    study, _ = tune_sweep(body, tmp_path / "out")
    times = []
    for trial in study.trials:
        folder = study.store.root / "trials" / trial / "attempts" / "1"
        times.append(((folder / "provenance.json").stat().st_mtime, (folder / "status.json").stat().st_mtime))
    times.sort()
    gaps = sorted(begin - end for (_, end), (begin, _) in pairwise(times))
    assert gaps[0] >= 0
    assert gaps[len(gaps) // 2] < 0.5, f"seconds from one trial's end to the next one's begin: {gaps}"


def test_a_text_too_short_for_a_batch_ends_the_sweep_before_a_trial_begins(ray_session, tmp_path):
    body = one_way(tmp_path, ARMS[:1], train={"batch_size": 4096})
    for runner in ("tune", "inline"):
        with pytest.raises(
            ValueError, match=r"the train split holds \d+ windows of 32 tokens, and 4096 are needed"
        ):
            fabric.sweep(body, out=tmp_path / runner, runner=runner)
        assert not list((tmp_path / runner).glob("drill/trials/*/attempts"))


def always_fails(config: dict[str, Any]) -> None:
    """The worker of every trial with gqa dies without a word, whatever is tried."""
    import os
    import signal

    if config["arm"] == "gqa":
        config["task"]["rungs"] = [128]

        import fabric.train.loop as loop

        def die(self: Any, step: int) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        loop.Recorder.beat = die  # type: ignore[method-assign]
    fabric_trial(config)


@pytest.mark.slow
def test_a_trial_that_always_dies_is_given_up_and_said_to_have_failed(ray_session, tmp_path):
    body = one_way(tmp_path, ARMS[:3], resources={"max_retries": 1})
    study, heard = tune_sweep(body, tmp_path / "out", always_fails)
    by_arm = {t.arm: t for t in study.trials.values()}
    assert {a: t.end for a, t in by_arm.items()} == {"mha": "finished", "gqa": "failed", "mla": "finished"}
    record = study.store.trial(by_arm["gqa"].id)
    assert record.attempt_numbers() == [1, 2], "tried once, and once again"
    assert len(heard.errors) == 2
    (warning,) = [w for w in study.warnings if "gqa" in w]
    assert "failed" in warning
    said = {s.id: s for s in status(study.store.root)}[by_arm["gqa"].id]
    assert said.state == "failed"
    assert said.attempts == 2
    assert said.reason
    # A later run tries again, from the beginning of its patience.
    again, _ = tune_sweep(body, tmp_path / "out")
    assert {t.end for t in again.trials.values()} == {"finished"}
    assert record.attempt_numbers() == [1, 2, 3]
    assert len(again.store.trial(by_arm["mha"].id).attempt_numbers()) == 1


@pytest.fixture
def one_minute():
    """A test that hangs fails."""
    import signal

    def late(*_: Any) -> None:
        raise TimeoutError("not over after 60 s: the sweep hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def slow_to_leave(config: dict[str, Any]) -> None:
    """Takes three seconds to unwind after a stop."""
    import time

    try:
        fabric_trial(config)
    except SystemExit:
        time.sleep(3)
        raise


def impatient(config: dict[str, Any]) -> None:
    """The same where Tune waits for two seconds only, as it does by default."""
    import os

    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "2"
    slow_to_leave(config)


def stopping_job(folder: Path) -> dict[str, Any]:
    """Three rates, of which the middle one begins, and the others are stopped at their rung."""
    search = {
        "mode": "grid",
        "seeds": 1,
        "tuning_seeds": 1,
        "axes": [{"arms": ARMS[:1]}, rates(1e-4, 1e-2, 1e-5)],
        "scheduler": {**ASHA, "reduction_factor": 3},
    }
    return job(folder, steps=12, search=search)


@pytest.mark.slow
def test_a_slow_ending_costs_the_next_trial_nothing(ray_session, one_minute, tmp_path):
    study, heard = tune_sweep(stopping_job(tmp_path), tmp_path / "out", slow_to_leave)
    assert heard.errors == []
    assert [t.end for t in study.trials.values()] == ["stopped", "finished", "stopped", "finished"]


@pytest.mark.slow
def test_at_two_seconds_the_next_trial_errs_and_is_tried_again(ray_session, one_minute, tmp_path):
    """Tune tells nobody of it: without our looking the sweep would wait for ever."""
    study, heard = tune_sweep(stopping_job(tmp_path), tmp_path / "out", impatient)
    assert heard.errors, "Tune reused an actor that had not been left; is the setting read at all?"
    assert [t.end for t in study.trials.values()] == ["stopped", "finished", "stopped", "finished"]


def test_workers_have_our_settings(ray_session, tmp_path):
    study, heard = tune_sweep(one_way(tmp_path, ARMS[:1]), tmp_path / "out")
    assert heard.errors == []
    (trial,) = study.trials
    pid = (study.store.trial(trial).provenance(1) or {})["pid"]
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert b"TUNE_FUNCTION_THREAD_TIMEOUT_S=60" in environment
    assert os.getpid() != pid
