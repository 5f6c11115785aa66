import json
import math
import re

import pytest
import torch
from train_kit import BATCH, SEQ_LEN, Reports, final_files, loop_state, losses, make_trial

import models
from fabric.data import Batches
from fabric.job.metrics import METRICS
from fabric.store import FAILED, FINISHED, RUNNING, STOPPED, Attempt
from fabric.train import checkpoint, loop
from fabric.train.directive import CheckpointAndExit, Stop
from fabric.train.engine import Engine
from fabric.train.recorder import Recorder
from models.parts import Part

TOKENS = BATCH * SEQ_LEN


def test_a_whole_run(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=12, log_every_steps=5)
    record, report = store.trial(trial.id), Reports()
    outcome = loop.run(trial, record, cache, report=report, rung_tokens=[3 * TOKENS])
    assert (outcome.state, outcome.reason["kind"], outcome.step) == (FINISHED, "completed", 12)
    assert report.steps == [3, 6, 12]
    assert [row["step"] for row in record.metrics()] == [3, 5, 6, 10, 12]
    unknown = {key for row in report.rows for key in row} - set(METRICS) - {"events"}
    assert not unknown
    first, last = report.rows[0], report.rows[-1]
    assert first["tokens"] == 3 * TOKENS
    assert last["val_loss"] < first["val_loss"]
    assert last["val_loss"] == outcome.final["val_loss"] == record.status().final["val_loss"]
    assert last["flops"] == 3 * 12 * TOKENS * Engine(trial, cache).flops_per_token / 3
    assert last["tokens_per_second"] > 0
    assert last["mfu"] is None
    assert last["n_params"] > 0
    assert 0 <= last["data_wait_fraction"] < 1
    assert last["lr"] == pytest.approx(0.1 * 3e-3)
    provenance = record.provenance(1)
    assert provenance["resumed_step"] == 0
    assert provenance["numerics"]["threads"] == 1
    assert provenance["data_key"] == cache.key


def test_targets_are_the_tokens_that_follow_in_the_text(prepared, store):
    """The loss of the first step, by hand: rows found again in the token stream, each token's successor its target."""
    data, cache = prepared
    trial = make_trial(data, cache, steps=2)
    loop.run(trial, store.trial(trial.id), cache)
    stream = torch.from_numpy(cache.tokens("train").astype("int64"))
    rows = torch.from_numpy(Batches(cache, "train", SEQ_LEN, BATCH, trial.seed).batch(0))
    starts = [i for row in rows for i in range(len(stream)) if torch.equal(stream[i : i + SEQ_LEN + 1], row)]
    assert len(starts) >= BATCH, "a row is a piece of the text as it stands"
    with torch.no_grad():
        logits_BTV = models.build(trial.model, trial.seed)(rows[:, :SEQ_LEN]).logits
    nll = -logits_BTV.double().log_softmax(-1)
    by_hand = sum(nll[b, t, rows[b, t + 1]] for b in range(BATCH) for t in range(SEQ_LEN)) / TOKENS
    assert losses(store.trial(trial.id))[0][1] == pytest.approx(float(by_hand), abs=5e-6)


def test_a_finished_trial_trains_nothing_and_reports_its_last_row(prepared, store, monkeypatch):
    data, cache = prepared
    trial = make_trial(data, cache, steps=4)
    record, first = store.trial(trial.id), Reports()
    outcome = loop.run(trial, record, cache, report=first)
    monkeypatch.setattr(Engine, "__init__", lambda *a: pytest.fail("trained again"))
    again = Reports()
    assert loop.run(trial, record, cache, report=again) == outcome
    assert again.rows == first.rows[-1:]
    assert record.attempt_numbers() == [1]


def test_a_rung_s_checkpoint_and_everything_final_are_on_disk_before_the_report(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=6, evaluate={"times": 1})
    record = store.trial(trial.id)
    seen = []

    def report(row):
        newest = checkpoint.newest_checkpoint(record)
        seen.append((row["step"], newest[0].step, record.status().state, record.metrics()[-1]["step"]))
        return Stop() if row["step"] == 6 else loop.Continue()

    loop.run(trial, record, cache, report=report, rung_tokens=[2 * TOKENS])
    assert seen == [(2, 2, RUNNING, 2), (6, 6, FINISHED, 6)]


def test_stop_writes_its_reason_and_no_final_evaluation(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=6, evaluate={"times": 3})
    record = store.trial(trial.id)
    reason = {"kind": "rung", "value": 4.0, "cutoff": 3.5}
    outcome = loop.run(trial, record, cache, report=Reports({4: Stop(reason)}))
    assert (outcome.state, outcome.step, outcome.reason) == (STOPPED, 4, reason)
    assert record.status().reason == reason
    assert record.checkpoints() == []
    assert record.status().final["val_loss"] == outcome.final["val_loss"]


def test_pause_and_go_on_equals_an_undisturbed_run(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=6, evaluate={"times": 3})
    whole, parts = store.trial("whole"), store.trial("parts")
    loop.run(trial, whole, cache)
    paused = loop.run(trial, parts, cache, report=Reports({4: CheckpointAndExit()}))
    assert (paused.state, paused.reason) == (STOPPED, {"kind": "paused"})
    report = Reports()
    assert loop.run(trial, parts, cache, report=report).state == FINISHED
    assert report.steps == [6]  # the row of step 4 was delivered before the pause
    assert losses(parts) == losses(whole)
    assert final_files(parts)["model.safetensors"] == final_files(whole)["model.safetensors"]
    assert parts.provenance(2)["resumed_step"] == 4
    assert parts.provenance(2)["resumed_attempt"] == 1


def test_a_process_that_is_taken_away_leaves_a_checkpoint(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=6, evaluate={"times": 3}, log_every_steps=1)
    whole, parts = store.trial("whole"), store.trial("parts")
    loop.run(trial, whole, cache)
    asked = iter([False, False, True])
    left = loop.run(trial, parts, cache, leaving=lambda: next(asked))
    assert (left.state, left.reason, left.step) == (STOPPED, {"kind": "preempted"}, 3)
    assert [row["step"] for row in parts.metrics()] == [1, 2, 3]
    assert parts.status().reason == {"kind": "preempted"}
    report = Reports()
    assert loop.run(trial, parts, cache, report=report).state == FINISHED
    assert parts.provenance(2)["resumed_step"] == 3
    assert report.steps == [4, 6]
    assert losses(parts) == losses(whole)
    assert final_files(parts)["model.safetensors"] == final_files(whole)["model.safetensors"]


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()])
def test_leaving_out_of_a_report_keeps_the_trial_resumable(prepared, store, error):
    data, cache = prepared
    trial = make_trial(data, cache, steps=6, evaluate={"times": 3})
    record = store.trial(trial.id)
    with pytest.raises(type(error)):
        loop.run(trial, record, cache, report=Reports({2: error}), rung_tokens=[2 * TOKENS])
    assert record.status().state == STOPPED
    assert record.status().reason["kind"] == "interrupted"
    assert loop.run(trial, record, cache).state == FINISHED
    assert record.provenance(2)["resumed_step"] == 2


@pytest.mark.parametrize("val_windows", [4, 2])
def test_a_row_that_death_kept_from_the_planner_is_reported_again_if_it_compares(
    prepared, store, val_windows
):
    data, cache = prepared
    trial = make_trial(data, cache, steps=6, evaluate={"times": 3})
    record = store.trial(trial.id)
    with pytest.raises(SystemExit):
        loop.run(trial, record, cache, report=Reports({2: SystemExit(0)}), rung_tokens=[2 * TOKENS])
    Attempt(record.objects, record.prefix, 1).write_status(RUNNING, 2)  # as `kill -9` leaves it
    later = make_trial(data, cache, steps=6, evaluate={"times": 3, "val_tokens": val_windows * SEQ_LEN})
    report = Reports()
    loop.run(later, record, cache, report=report, rung_tokens=[2 * TOKENS])
    assert report.steps == ([2, 4, 6] if val_windows == 4 else [4, 6])


def test_leaving_out_of_the_last_report_leaves_it_finished(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=2, evaluate={"times": 1})
    for name, error in {"a": SystemExit(0), "b": ValueError("x")}.items():
        with pytest.raises(type(error)):
            loop.run(trial, store.trial(name), cache, report=Reports({2: error}))
        assert store.trial(name).status().state == FINISHED


def test_an_error_is_written_with_its_traceback_and_raised(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=4)
    record = store.trial(trial.id)
    with pytest.raises(ZeroDivisionError):
        loop.run(trial, record, cache, report=Reports({2: ZeroDivisionError("inside")}))
    status = record.status()
    assert (status.state, status.reason["kind"], status.step) == (FAILED, "failed", 2)
    assert "ZeroDivisionError: inside" in status.reason["traceback"]
    with pytest.raises(TypeError, match="report returned None; allowed: Continue, Stop"):
        loop.run(trial, store.trial("none"), cache, report=lambda row: None)


def test_an_error_while_building_is_a_failure_too(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=4, batch_size=4000)
    with pytest.raises(ValueError, match="corpus smaller than one batch"):
        loop.run(trial, store.trial(trial.id), cache)
    assert store.trial(trial.id).status().state == FAILED


@pytest.mark.parametrize(("lr", "why"), [(1e30, "is nan|is inf"), (5.0, "above the first step's .* 4 steps")])
def test_divergence_is_a_result(prepared, store, lr, why):
    data, cache = prepared
    trial = make_trial(
        data,
        cache,
        steps=30,
        optimizer={"kind": "adamw", "lr": lr},
        divergence={"above_initial_steps": 4},
        schedule={"kind": "constant", "warmup": 0},
    )
    record, report = store.trial(trial.id), Reports()
    outcome = loop.run(trial, record, cache, report=report)
    assert (outcome.state, outcome.reason["kind"]) == (FINISHED, "diverged")
    assert outcome.reason["step"] == outcome.step < 30
    assert re.search(why, outcome.reason["why"])
    assert outcome.final["val_loss"] is None
    assert report.rows[-1]["val_loss"] is None
    assert record.status().reason["kind"] == "diverged"
    assert not record.checkpoints(), "a state that has diverged is not kept"
    assert loop.run(trial, record, cache) == outcome


def test_early_stop_ends_as_converged_and_does_not_count_rungs(prepared, store):
    data, cache = prepared
    early_stop = {"patience": 2, "min_delta": 100.0}
    trial = make_trial(data, cache, steps=12, evaluate={"times": 6}, early_stop=early_stop)
    for name, rungs in {"plain": [], "rungs": [TOKENS, 3 * TOKENS, 5 * TOKENS]}.items():
        record, report = store.trial(name), Reports()
        outcome = loop.run(trial, record, cache, report=report, rung_tokens=rungs)
        assert (outcome.state, outcome.reason["kind"], outcome.step) == (FINISHED, "converged", 6)
        assert report.steps == ([1, 2, 3, 4, 5, 6] if rungs else [2, 4, 6])
        assert math.isfinite(outcome.final["val_loss"])


def test_early_stop_counts_go_through_a_checkpoint(prepared, store):
    data, cache = prepared
    trial = make_trial(
        data, cache, steps=12, evaluate={"times": 6}, early_stop={"patience": 3, "min_delta": 100.0}
    )
    record = store.trial(trial.id)
    loop.run(trial, record, cache, report=Reports({4: CheckpointAndExit()}))
    outcome = loop.run(trial, record, cache)
    assert (outcome.reason["kind"], outcome.step) == ("converged", 8)


def test_evaluations_and_rungs_change_no_number(prepared, store):
    data, cache = prepared
    results = []
    for name, times, rungs in (("a", 1, []), ("b", 7, [TOKENS, 3 * TOKENS])):
        trial = make_trial(data, cache, steps=8, evaluate={"times": times})
        loop.run(trial, store.trial(name), cache, rung_tokens=rungs)
        results.append((losses(store.trial(name)), final_files(store.trial(name))["model.safetensors"]))
    assert results[0] == results[1]


class Clock:
    """Seven seconds a step."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        step = Engine.step

        def timed(engine):
            self.now += 7
            step(engine)

        monkeypatch.setattr(Engine, "step", timed)

    def __call__(self):
        return self.now


def checkpoints_taken(monkeypatch):
    steps = []
    saved = Recorder.saved
    monkeypatch.setattr(Recorder, "saved", lambda self, step: (steps.append(step), saved(self, step))[1])
    return steps


@pytest.mark.parametrize(
    ("cadence", "steps"),
    [
        ({"every_steps": 4, "every_seconds": None}, [4, 8, 10]),
        ({"every_seconds": 20}, [3, 6, 9, 10]),
        ({"every_steps": 4, "every_seconds": 20}, [3, 4, 7, 8, 10]),
        ({"every_seconds": None}, [10]),
    ],
)
def test_checkpoint_cadence(prepared, store, monkeypatch, cadence, steps):
    data, cache = prepared
    trial = make_trial(data, cache, steps=10, checkpoint={**cadence, "keep_last": 2}, evaluate={"times": 1})
    taken, record = checkpoints_taken(monkeypatch), store.trial(trial.id)
    loop.run(trial, record, cache, clock=Clock(monkeypatch))
    assert taken == steps
    assert [c.step for c in record.checkpoints()] == steps[-2:]


def test_heartbeats_every_ten_seconds_without_evaluations(prepared, store, monkeypatch):
    data, cache = prepared
    trial = make_trial(data, cache, steps=10, evaluate={"times": 1})
    beats = []
    beat = Recorder.beat
    monkeypatch.setattr(Recorder, "beat", lambda self, step: (beats.append(step), beat(self, step))[1])
    loop.run(trial, store.trial(trial.id), cache, clock=Clock(monkeypatch))
    assert beats == [0, 2, 4, 6, 8]
    assert store.trial(trial.id).status().heartbeat == 6


def test_data_order_is_logged_and_shared_by_arms(prepared, store):
    data, cache = prepared
    arms = {
        "a": make_trial(data, cache, steps=3),
        "b": make_trial(data, cache, steps=3, model={"n_layers": 1}),
    }
    hashes = {}
    for name, trial in arms.items():
        loop.run(trial, store.trial(name), cache)
        hashes[name] = [row["data_hash"] for row in store.trial(name).metrics()]
    other_seed = make_trial(data, cache, steps=3, seed=2)
    loop.run(other_seed, store.trial("c"), cache)
    assert hashes["a"] == hashes["b"]
    assert len(set(hashes["a"])) == 3
    assert hashes["a"] != [row["data_hash"] for row in store.trial("c").metrics()]


def test_weights_are_stored_once_and_decay_spares_vectors(prepared, store):
    from safetensors.torch import load

    data, cache = prepared
    trial = make_trial(data, cache, steps=2)
    loop.run(trial, store.trial(trial.id), cache)
    tensors = load(final_files(store.trial(trial.id))["model.safetensors"])
    assert sum(t.numel() for t in tensors.values()) == Engine(trial, cache).n_params
    groups = Engine(trial, cache).stepper.optimizer.param_groups
    assert all(p.ndim >= 2 for p in groups[0]["params"])
    assert all(p.ndim < 2 for p in groups[1]["params"])
    assert groups[1]["weight_decay"] == 0 < groups[0]["weight_decay"]


def test_compiled_training_has_the_same_losses(prepared, store, monkeypatch):
    import functools

    data, cache = prepared
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = (make_trial(data, cache, steps=3, compile=c) for c in (False, True))
    loop.run(plain, store.trial("plain"), cache)
    loop.run(compiled, store.trial("compiled"), cache)
    for (_, a), (_, b) in zip(losses(store.trial("plain")), losses(store.trial("compiled"))):
        assert a == pytest.approx(b, abs=5e-6)
    fingerprints = [store.trial(n).provenance(1)["numerics"]["fingerprint"] for n in ("plain", "compiled")]
    assert fingerprints[0] != fingerprints[1]


def test_samples_are_kept(prepared, store, monkeypatch):
    data, cache = prepared
    trial = make_trial(data, cache, steps=2)
    metrics = loop._Training._final_metrics
    monkeypatch.setattr(
        loop._Training, "_final_metrics", lambda s, b: (metrics(s, b)[0], {"samples": ["a text", "another"]})
    )
    record = store.trial(trial.id)
    loop.run(trial, record, cache)
    assert record.attempt_json(1, "samples") == ["a text", "another"]
    assert json.dumps(record.status().final)


def test_config_classes_are_abstract():
    from fabric.train.config import OptimizerConfig, ScheduleConfig

    for base in (OptimizerConfig, ScheduleConfig):
        assert issubclass(base, Part)
        with pytest.raises(TypeError, match="abstract"):
            base(kind="x", lr=1)


def test_state_is_loadable_without_unpickling_code(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=3)
    loop.run(trial, store.trial(trial.id), cache)
    state = loop_state(store.trial(trial.id))
    assert state["loop"]["step"] == 3
    assert state["loop"]["history"].shape == (4, 3)
    assert set(state["rng"]) == {"torch", "cuda", "numpy", "python"}
