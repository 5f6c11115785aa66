"""N steps = k steps + kill -9 + resume, bit for bit; and a process's past changes nothing."""

import signal

import numpy as np
import pytest
import torch
from train_kit import (
    ADAMW,
    MHA,
    Reports,
    die_before_step,
    die_in,
    every_mixer,
    every_optimizer,
    final_files,
    losses,
    make_trial,
    run_child,
    train_in_child,
)

from fabric.evaluate import lm
from fabric.store import FINISHED, RUNNING
from fabric.train import checkpoint, loop
from fabric.train.directive import CheckpointAndExit
from fabric.train.engine import Engine

CASES = {f"{kind}-adamw": ({"mixer": mixer}, ADAMW) for kind, mixer in every_mixer().items()} | {
    f"mha-{kind}": ({"mixer": MHA}, optimizer) for kind, optimizer in every_optimizer().items()
}
CASES["hybrid-adamw"] = ({"mixer_pattern": [{"window": 8}, every_mixer()["mla"]]}, ADAMW)


def same(a, b):
    """Deep equality of states that hold tensors."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_equal_ends(one, other):
    """Same losses at every step, same weights, optimizer state and generators at the end."""
    assert losses(one) == losses(other)
    mine, theirs = final_files(one), final_files(other)
    assert mine["model.safetensors"] == theirs["model.safetensors"]
    assert same(checkpoint._load(mine["optimizer.pt"]), checkpoint._load(theirs["optimizer.pt"]))
    states = [checkpoint._load(files["state.pt"]) for files in (mine, theirs)]
    assert same(states[0]["rng"], states[1]["rng"])
    assert same(states[0]["scaler"], states[1]["scaler"])
    assert same(states[0]["loop"]["history"][:2], states[1]["loop"]["history"][:2])


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_across_an_epoch_s_end(prepared, store, case):
    data, cache = prepared
    model, optimizer = CASES[case]
    trial = make_trial(
        data,
        cache,
        steps=14,
        batch_size=16,
        model=model,
        optimizer=optimizer,
        checkpoint={"every_steps": 4, "every_seconds": None},
    )
    assert 8 < cache.n_rows("train", trial.data.seq_len) / 16 < 14  # the epoch ends after the resume
    killed, whole = store.trial(trial.id), store.trial("whole")
    assert run_child(die_before_step, trial, store.root, cache, 10) == -signal.SIGKILL
    assert killed.status().state == RUNNING
    assert loop.run(trial, killed, cache).state == FINISHED
    assert killed.provenance(2)["resumed_step"] == 8
    loop.run(trial, whole, cache)
    assert [step for step, _ in losses(killed)] == list(range(1, 15))
    assert_equal_ends(killed, whole)


def test_killed_twice_and_before_the_first_checkpoint(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=10, checkpoint={"every_steps": 3, "every_seconds": None})
    record = store.trial(trial.id)
    for updates in (2, 5, 6):  # of the attempt: at steps 1, 4 and (from 3) 8
        assert run_child(die_before_step, trial, store.root, cache, updates) == -signal.SIGKILL
    loop.run(trial, record, cache)
    assert [record.provenance(n)["resumed_step"] for n in (1, 2, 3, 4)] == [0, 0, 3, 6]
    loop.run(trial, store.trial("whole"), cache)
    assert_equal_ends(record, store.trial("whole"))


@pytest.mark.parametrize("moment", ["end", "saved"])
def test_killed_on_the_last_yards(prepared, store, moment):
    data, cache = prepared
    trial = make_trial(data, cache, steps=4)
    record = store.trial(trial.id)
    assert run_child(die_in, moment, trial, store.root, cache) == -signal.SIGKILL
    assert record.status().state == RUNNING
    report = Reports()
    outcome = loop.run(trial, record, cache, report=report)
    loop.run(trial, store.trial("whole"), cache)
    assert record.provenance(2)["resumed_step"] == 4
    assert report.steps == [4]
    assert outcome.final["val_loss"] == store.trial("whole").status().final["val_loss"]
    assert_equal_ends(record, store.trial("whole"))


def test_killed_after_converging_stays_converged(prepared, store):
    data, cache = prepared
    trial = make_trial(
        data, cache, steps=12, evaluate={"times": 6}, early_stop={"patience": 2, "min_delta": 100.0}
    )
    assert run_child(die_in, "end", trial, store.root, cache) == -signal.SIGKILL
    outcome = loop.run(trial, store.trial(trial.id), cache)
    assert (outcome.reason["kind"], outcome.step) == ("converged", 6)


def test_a_rung_whose_report_was_cut_off_is_reported_again(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=6, evaluate={"times": 1})
    rungs = {"rung_tokens": [3 * 4 * 32]}
    assert run_child(die_in, "saved", trial, store.root, cache, **rungs) == -signal.SIGKILL
    report = Reports()
    loop.run(trial, store.trial(trial.id), cache, report=report, **rungs)
    assert report.steps == [3, 6]


def test_a_damaged_checkpoint_is_passed_over(prepared, store):
    data, cache = prepared
    cadence = {"every_steps": 2, "every_seconds": None, "keep_last": 3}
    trial = make_trial(data, cache, steps=8, checkpoint=cadence, evaluate={"times": 4})
    record = store.trial(trial.id)
    loop.run(trial, record, cache, report=Reports({6: CheckpointAndExit()}))
    newest, older = reversed(record.checkpoints()[-2:])
    weights = store.root / newest.prefix / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (store.root / older.prefix / "manifest.json").write_text('{"step": 4, "files"')
    with pytest.warns(RuntimeWarning, match="damaged"):
        loop.run(trial, record, cache)
    assert record.provenance(2)["resumed_step"] == 2
    loop.run(trial, store.trial("whole"), cache)
    assert_equal_ends(record, store.trial("whole"))


def test_a_deletion_cut_short_is_no_checkpoint(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=2)
    record = store.trial(trial.id)
    loop.run(trial, record, cache)
    folder = store.root / record.checkpoints()[0].prefix
    (folder / "model.safetensors").unlink()
    folder.rename(folder.parent / ".0000000002.abcd.tmp")
    assert record.checkpoints() == []


def test_a_checkpoint_of_another_architecture_is_refused(prepared, store):
    data, cache = prepared
    record = store.trial("one")
    loop.run(make_trial(data, cache, steps=4), record, cache, report=Reports({2: CheckpointAndExit()}))
    with pytest.raises(ValueError, match="another architecture"):
        loop.run(make_trial(data, cache, steps=4, model={"n_layers": 1}), record, cache)


def spoil_the_process():
    """What careless trials leave behind."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    torch.set_autocast_enabled("cpu", True)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(99)
    np.random.seed(99)


def test_the_tenth_trial_on_a_process_equals_the_first(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=6, precision="bf16")
    assert run_child(train_in_child, trial, store.root, cache) == 0
    for i, mixer in enumerate(every_mixer().values()):
        other = make_trial(data, cache, steps=2, mixer=mixer, precision=("fp16", "bf16", "fp32")[i % 3])
        loop.run(other, store.trial(f"other-{i}"), cache)
    with pytest.raises(RuntimeError, match="broken"):
        loop.run(other, store.trial("failing"), cache, report=Reports({1: RuntimeError("broken")}))
    compiled = make_trial(data, cache, steps=4, optimizer={"kind": "adamw8bit", "lr": 1.0})
    loop.run(compiled, store.trial("8bit"), cache)
    try:
        spoil_the_process()
        loop.run(trial, store.trial("tenth"), cache)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_ends(store.trial("tenth"), store.trial(trial.id))


def test_equal_weights_have_equal_hashes(prepared):
    data, cache = prepared
    models = [Engine(make_trial(data, cache, seed=seed), cache).model for seed in (1, 1, 2)]
    hashes = [checkpoint.parameter_hash(model) for model in models]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_checkpoint_s_weights_load_without_a_run(prepared, store):
    data, cache = prepared
    trial = make_trial(data, cache, steps=3)
    outcome = loop.run(trial, store.trial(trial.id), cache)
    model = checkpoint.load_model(trial, final_files(store.trial(trial.id)))
    again = lm.score(model, cache, "validation", trial.data.seq_len, trial.evaluate.final_val_tokens)
    assert again.loss == pytest.approx(outcome.final["val_loss"], abs=1e-6)
