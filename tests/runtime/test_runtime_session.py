"""Sweeps on the run's one Ray: reuse of actors, retries, slow endings, stopping rules."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from drill_kit import ASHA, FIFO, GQA, SEQ_LEN, SYNC_ASHA, job, losses, rates, states, table

import fabric
from fabric.job.load import load_job
from fabric.results import status
from fabric.runtime.worker import fabric_trial
from fabric.store import Store, driver_lock
from fabric.sweeping import Caches, Silent, new_study, out_root

pytestmark = pytest.mark.ray
NAMES = ("fabric", "models", "kernels")


@pytest.fixture(autouse=True)
def _workers_know_this_module():
    """Trainables below travel by value: a worker's path has no tests on it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Heard(Silent):
    """Keeps what a sweep tells."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, str]] = []
        self.order: list[str] = []

    def started(self, task: Any) -> None:
        self.order.append(task.trial.id)

    def ended(self, task: Any, error: str | None) -> None:
        if error:
            self.errors.append((task.trial.id, error))


def tune_sweep(body: dict[str, Any], out: Path, trainable: Any = fabric_trial, slots: int = 1) -> Any:
    """`fabric.sweep` with a trainable of the test's own; the study and what was heard of it."""
    from fabric.runtime.tune import run_study

    loaded = load_job(body)
    root = out_root(loaded, out)
    heard = Heard()
    with driver_lock(root):
        study = new_study(loaded, root, out)
        caches = Caches(out, heard)
        options = {"slots": slots, "cpus": 1, "gpus": 0, "root": root, "progress": heard, "caches": caches}
        assert run_study(study, trainable=trainable, **options)
    return study, heard


def one_way(folder: Path, arms: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """A job that trains some arms with one seed each, in the order given."""
    search = {"mode": "grid", "seeds": 1, "axes": [{"arms": arms}]}
    return job(folder, steps=12, search=search, **options)


MLA = {"kind": "mla", "n_heads": 4, "kv_latent_dim": 16, "qk_nope_dim": 8, "qk_rope_dim": 4, "v_head_dim": 8}
ARMS = [
    {"name": "mha"},
    {"name": "gqa", "set": GQA},
    {"name": "mla", "set": {"model.mixer": MLA}},
    {"name": "qk_norm", "set": {"model.mixer.qk_norm": "head"}},
    {"name": "window", "set": {"model.mixer.window": 8}},
    {"name": "post", "set": {"model.norm_placement": "post"}},
    {"name": "bf16", "set": {"train.precision": "bf16"}},
    {"name": "wide", "set": {"model.d_model": 48, "model.ffn": {"kind": "swiglu", "d_ff": 96}}},
    {"name": "three", "set": {"model.n_layers": 3}},
    {"name": "rate", "set": {"train.optimizer.lr": 1e-2}},
]


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
    """Three trials a phase on two slots: one actor is idle before each phase's end, and both work in the next one."""
    phases = [
        {"name": "a", "axes": [{"path": "model.norm_placement", "values": ["pre"]}]},
        {"name": "b", "axes": [{"path": "model.mixer.qk_norm", "values": ["none", "head"]}]},
        {"name": "c", "axes": [{"path": "model.ffn.d_ff", "values": [64, 96]}]},
    ]
    body = job(tmp_path, steps=30, search={"mode": "phases", "seeds": 3, "phases": phases})
    study, _ = tune_sweep(body, tmp_path / "out", slots=2)
    pids: dict[str, set[int]] = {}
    for trial in study.trials.values():
        pids.setdefault(trial.phase, set()).add(study.registry.record(trial).provenance(1)["pid"])
    assert set(pids) == {"a", "b", "c"}
    assert pids["a"] == pids["b"] == pids["c"]
    assert len(pids["a"]) == 2


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


def test_a_test_split_that_cannot_be_read_is_reported(tmp_path):
    """Inline: the same study, without workers."""
    body = one_way(tmp_path, ARMS[:1], resources={"max_retries": 1})
    done = fabric.sweep(body, out=tmp_path / "out", runner="inline")
    assert not done.failed
    store = Store(done.root)
    (trial,) = store.trial_ids()
    store.objects.delete(f"trials/{trial}/evaluations")
    for key in store.objects.list(f"trials/{trial}/attempts/1/checkpoints"):
        if key.endswith("model.safetensors"):
            store.objects.put(key, b"rotten")
    with pytest.warns(RuntimeWarning, match="damaged"):
        again = fabric.sweep(body, out=tmp_path / "out", runner="inline")
    assert again.failed == (trial,)
    assert any("test split was not read" in w for w in again.warnings)


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
    """Three rates, of which the later ones are stopped at their rung."""
    search = {
        "mode": "grid",
        "seeds": 1,
        "tuning_seeds": 1,
        "axes": [{"arms": ARMS[:1]}, rates(1e-2, 1e-4, 1e-5)],
        "scheduler": {**ASHA, "reduction_factor": 3},
    }
    return job(folder, steps=12, search=search)


@pytest.mark.slow
def test_a_slow_ending_costs_the_next_trial_nothing(ray_session, one_minute, tmp_path):
    study, heard = tune_sweep(stopping_job(tmp_path), tmp_path / "out", slow_to_leave)
    assert heard.errors == []
    assert [t.end for t in study.trials.values()] == ["finished", "stopped", "stopped", "finished"]


@pytest.mark.slow
def test_at_two_seconds_the_next_trial_errs_and_is_tried_again(ray_session, one_minute, tmp_path):
    """Tune tells nobody of it: without our looking the sweep would wait for ever."""
    study, heard = tune_sweep(stopping_job(tmp_path), tmp_path / "out", impatient)
    assert heard.errors, "Tune reused an actor that had not been left; is the setting read at all?"
    assert [t.end for t in study.trials.values()] == ["finished", "stopped", "stopped", "finished"]


def test_workers_have_our_settings(ray_session, tmp_path):
    study, heard = tune_sweep(one_way(tmp_path, ARMS[:1]), tmp_path / "out")
    assert heard.errors == []
    (trial,) = study.trials
    pid = (study.store.trial(trial).provenance(1) or {})["pid"]
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert b"TUNE_FUNCTION_THREAD_TIMEOUT_S=60" in environment
    assert os.getpid() != pid


# -- stopping rules, by Tune and inline --------------------------------------------------------------------------


def tuning_job(folder: Path, scheduler: dict[str, Any]) -> dict[str, Any]:
    search = {
        "mode": "grid",
        "seeds": 2,
        "tuning_seeds": 1,
        "axes": [{"arms": ARMS[:2]}, rates(1e-5, 1e-2, 1e-3, 1e-4)],
        "scheduler": scheduler,
    }
    return job(folder, steps=24, search=search)


def verdicts(study: Any) -> dict[tuple[str, str, int], dict[str, Any]]:
    return {(t.arm, t.point, rung): d for t in study.trials.values() for rung, d in t.decisions.items()}


@pytest.mark.slow
def test_synchronous_asha_decides_the_same_inline_and_with_tune(ray_session, tmp_path):
    body = tuning_job(tmp_path, SYNC_ASHA)
    study, heard = tune_sweep(body, tmp_path / "tune", slots=2)
    assert heard.errors == []
    inline = fabric.sweep(body, out=tmp_path / "inline", runner="inline")
    assert table(study.store.root) == table(inline.root)
    assert losses(study.store) == losses(Store(inline.root))
    again = new_study(load_job(body), inline.root, tmp_path / "inline")
    assert verdicts(study) == verdicts(again), "the same inputs, values and cutoffs"
    by_rung: dict[tuple[str, int], list[bool]] = {}
    for (arm, _, rung), decision in verdicts(study).items():
        by_rung.setdefault((arm, rung), []).append(decision["stop"])
        assert len(decision["seen"]) >= 2
    assert all(len(stops) - sum(stops) == len(stops) // 2 for stops in by_rung.values()), by_rung


@pytest.mark.slow
def test_asynchronous_asha_records_its_inputs_and_keeps_the_best_rate(ray_session, tmp_path):
    body = tuning_job(tmp_path, ASHA)
    study, heard = tune_sweep(body, tmp_path / "tune", slots=2)
    assert heard.errors == []
    for t in study.trials.values():
        record = study.store.trial(t.id)
        for rung, decision in t.decisions.items():
            kept = sorted(decision["seen"].values())[max(1, len(decision["seen"]) // 2) - 1]
            assert decision["cutoff"] == kept
            assert decision["stop"] == (decision["seen"][t.point] > kept)
            assert record.decision(f"{study.id}-{rung}") == decision
        assert (t.end == "stopped") == any(d["stop"] for d in t.decisions.values())
        if t.end == "stopped":
            said = {s.id: s for s in status(study.store.root)}[t.id]
            assert said.state == "stopped"
            assert "against" in said.reason
        assert len(record.attempt_numbers()) == 1
    full = fabric.sweep(tuning_job(tmp_path, FIFO), out=tmp_path / "full", runner="inline")
    stores = study.store, Store(full.root)
    chosen = [[s.study(s.studies()[0], f"rate-0-{i}")["point"] for i in (0, 1)] for s in stores]
    assert chosen[0] == chosen[1]


SLOW = [
    {"name": "quick", "set": {"train.schedule": {"kind": "constant", "warmup": 0}}},
    {"name": "slow", "set": {"train.schedule": {"kind": "constant", "warmup": 20}}},
]


def racing_job(folder: Path, compete: str, sync: bool) -> dict[str, Any]:
    """An arm that is behind for as long as it warms up."""
    scheduler = {"kind": "asha", "reduction_factor": 2, "grace_tokens": 8 * SEQ_LEN * 4, "sync": sync}
    search = {
        "mode": "grid",
        "seeds": 2,
        "axes": [{"arms": SLOW}],
        "scheduler": scheduler,
        "compete": compete,
    }
    return job(folder, steps=32, search=search)


@pytest.mark.slow
def test_a_slow_starter_is_stopped_only_on_request_and_then_with_all_its_seeds(ray_session, tmp_path):
    study, _ = tune_sweep(racing_job(tmp_path, "rates", sync=False), tmp_path / "rates", slots=2)
    assert {t.end for t in study.trials.values()} == {"finished"}
    assert not verdicts(study)
    for sync in (True, False):
        study, _ = tune_sweep(racing_job(tmp_path, "arms", sync), tmp_path / f"arms-{sync}", slots=2)
        ends = {(t.arm, t.seed): t.end for t in study.trials.values()}
        assert ends[("quick", 0)] == ends[("quick", 1)] == "finished"
        slow = [t for t in study.trials.values() if t.arm == "slow"]
        assert slow[0].decisions == slow[1].decisions, "one decision for all seeds"
        assert slow[0].end == slow[1].end
        if sync:
            assert slow[0].end == "stopped"


# -- what a driver that was killed may have left -------------------------------------------------------------------


@pytest.mark.parametrize("said", ["running", "stopped"])
def test_a_rung_reached_before_the_driver_died_is_decided_by_the_next_one(tmp_path, said):
    """The worker had written its row and waited; the driver was killed, or interrupted, before it decided."""
    body = tuning_job(tmp_path, SYNC_ASHA)
    whole = fabric.sweep(body, out=tmp_path / "whole", runner="inline")
    loaded, root = load_job(body), tmp_path / "cut" / "drill"

    class Killed(BaseException):
        pass

    class KillsAtFirstRung(Heard):
        def reported(self, task: Any, row: dict[str, Any], action: str) -> None:
            if row.get("tokens") in task.trial.rungs:
                raise Killed

    with pytest.raises(Killed):
        fabric.sweep(body, out=tmp_path / "cut", runner="inline", progress=KillsAtFirstRung())
    store = Store(root)
    (first,) = store.trial_ids()
    for key in store.objects.list(f"trials/{first}/decisions"):
        store.objects.delete(key)
    record = store.trial(first)
    last = record.status()
    assert last is not None
    attempt = record.new_attempt({"resumed_step": last.step})
    reason = {"kind": "interrupted", "by": "SystemExit"} if said == "stopped" else None
    attempt.write_status(said, last.step, reason)
    study = new_study(loaded, root, tmp_path / "cut")
    assert study.trials[first].state == "paused", "it is not trained past a rung that has not decided"
    done = fabric.sweep(body, out=tmp_path / "cut", runner="inline")
    assert table(done.root) == table(whole.root)
    assert losses(Store(done.root)) == losses(Store(whole.root))


@pytest.mark.parametrize("damage", ["cut metrics", "no manifest", "missing file", "corrupted file"])
def test_damage_costs_at_most_the_work_since_the_checkpoint_before(tmp_path, damage):
    body = one_way(tmp_path, ARMS[:1], train={"checkpoint": {"every_steps": 3, "keep_last": 3}})
    whole = fabric.sweep(body, out=tmp_path / "whole", runner="inline")
    done = fabric.sweep(body, out=tmp_path / "hurt", runner="inline")
    store = Store(done.root)
    (trial,) = store.trial_ids()
    record = store.trial(trial)
    folder = store.root / "trials" / trial / "attempts" / "1"
    newest = folder / "checkpoints" / f"{12:010d}"
    if damage == "cut metrics":
        segment = max(folder.glob("metrics-*.jsonl"))
        segment.write_bytes(segment.read_bytes()[:-20])
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    elif damage == "missing file":
        (newest / "optimizer.pt").unlink()
    else:
        weights = bytearray((newest / "model.safetensors").read_bytes())
        weights[-5] ^= 1
        (newest / "model.safetensors").write_bytes(weights)
    store.objects.delete(f"trials/{trial}/evaluations")
    before = record.status()
    assert before is not None
    body_of = {"state": "running", "heartbeat": 9, "step": 12, "reason": None, "final": None}
    (folder / "status.json").write_text(json.dumps(body_of))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = fabric.sweep(body, out=tmp_path / "hurt", runner="inline")
    assert any("damaged" in str(w.message) for w in caught) == (damage in ("missing file", "corrupted file"))
    resumed = (record.provenance(2) or {})["resumed_step"]
    assert resumed == (12 if damage == "cut metrics" else 9)
    assert losses(Store(again.root))[trial][-1] == losses(Store(whole.root))[trial][-1]
    assert table(again.root) == table(whole.root)
    assert states(store) == {trial: "finished"}


def test_a_cut_metrics_file_of_a_finished_trial_trains_nothing(tmp_path):
    body = one_way(tmp_path, ARMS[:1])
    done = fabric.sweep(body, out=tmp_path / "out", runner="inline")
    store = Store(done.root)
    (trial,) = store.trial_ids()
    for segment in (store.root / "trials" / trial / "attempts" / "1").glob("metrics-*.jsonl"):
        segment.write_bytes(segment.read_bytes()[:-7])
    began = time.monotonic()
    fabric.sweep(body, out=tmp_path / "out", runner="inline")
    assert time.monotonic() - began < 5
    assert store.trial(trial).attempt_numbers() == [1]
    assert fabric.results(done.root).arms[0].arm == "mha", "a verb stays one when its module is imported"
