import functools

import pytest
import torch
from train_kit import MHA, Reports, final_files, loop_state, losses, make_trial

from fabric.train import checkpoint, loop, step
from fabric.train.directive import CheckpointAndExit
from fabric.train.engine import MAX_CONSECUTIVE_SKIPS, Engine


def train(store, name, trial, cache, **options):
    outcome = loop.run(trial, store.trial(name), cache, **options)
    return outcome, store.trial(name)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_has_the_same_losses(prepared, store, micro):
    data, cache = prepared
    trial = make_trial(data, cache, steps=10)
    _, whole = train(store, "whole", trial, cache)
    _, parts = train(store, "parts", trial, cache, micro_batch_size=micro)
    for (_, a), (_, b) in zip(losses(whole), losses(parts), strict=True):
        assert a == pytest.approx(b, abs=5e-6)
    by_config = make_trial(data, cache, steps=10, micro_batch_size=micro)
    assert by_config.id == trial.id
    _, configured = train(store, "configured", by_config, cache)
    assert losses(configured) == losses(parts)


def test_a_micro_batch_the_batch_cannot_hold_is_refused(prepared, store):
    data, cache = prepared
    for size in (0, 5):
        with pytest.raises(ValueError, match=f"micro_batch_size={size} is not between 1 and batch_size=4"):
            train(store, str(size), make_trial(data, cache), cache, micro_batch_size=size)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_fp32_weights_close_to_fp32(prepared, store, precision):
    data, cache = prepared
    full, _ = train(store, "fp32", make_trial(data, cache, steps=12), cache)
    low, record = train(store, precision, make_trial(data, cache, steps=12, precision=precision), cache)
    assert low.final["train_loss"] != full.final["train_loss"]
    assert low.final["val_loss"] == pytest.approx(full.final["val_loss"], abs=0.05)
    from safetensors.torch import load

    assert {t.dtype for t in load(final_files(record)["model.safetensors"]).values()} == {torch.float32}


def test_fp16_overflow_skips_steps_and_the_scaler_is_restored(prepared, store, monkeypatch):
    data, cache = prepared
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**30, growth_interval=3)
    monkeypatch.setattr(step.torch.amp, "GradScaler", scaler)
    trial = make_trial(data, cache, steps=30, precision="fp16", evaluate={"times": 10})
    outcome, whole = train(store, "whole", trial, cache)
    rows = whole.metrics()
    skipped = [row for row in rows if "grad_norm" in row.get("non_finite", [])]
    assert 0 < len(skipped) == outcome.final["skipped_steps"] < 30
    assert rows[0]["loss_scale"] == 2.0**29
    assert rows[0]["train_loss"] != rows[-1]["train_loss"]
    paused_at = 3 * ((len(skipped) + 3) // 3)
    _, parts = train(store, "parts", trial, cache, report=Reports({paused_at: CheckpointAndExit()}))
    assert loop_state(parts)["scaler"]["scale"] < 2.0**30
    again, parts = train(store, "parts", trial, cache)
    assert again.final["skipped_steps"] == outcome.final["skipped_steps"]
    assert losses(parts) == losses(whole)
    assert [r["loss_scale"] for r in parts.metrics()] == [r["loss_scale"] for r in rows]
    assert final_files(parts)["model.safetensors"] == final_files(whole)["model.safetensors"]


def test_a_skipped_step_leaves_the_weights_alone(prepared, monkeypatch):
    data, cache = prepared
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**60)
    monkeypatch.setattr(step.torch.amp, "GradScaler", scaler)
    engine = Engine(make_trial(data, cache, precision="fp16"), cache)
    before = checkpoint.parameter_hash(engine.model)
    engine.step()
    assert engine.state.skipped_steps == 1
    assert checkpoint.parameter_hash(engine.model) == before


def test_fp16_gradients_that_are_never_finite_are_a_divergence(prepared, store, monkeypatch):
    data, cache = prepared
    gradients = step.Stepper.gradients

    def poisoned(self, ids, targets, micro):
        loss = gradients(self, ids, targets, micro)
        next(self.model.parameters()).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(step.Stepper, "gradients", poisoned)
    outcome, _ = train(store, "nan", make_trial(data, cache, steps=60, precision="fp16"), cache)
    assert (outcome.reason["kind"], outcome.step) == ("diverged", MAX_CONSECUTIVE_SKIPS)
    fp32, _ = train(store, "fp32", make_trial(data, cache, steps=60), cache)
    assert (fp32.reason["kind"], fp32.step) == ("diverged", 1)


def test_clipping_bounds_the_applied_gradient(prepared):
    data, cache = prepared
    norms = {}
    for clip in (None, 0.01):
        optimizer = {"kind": "adamw", "lr": 1.0, "weight_decay": 0}
        engine = Engine(make_trial(data, cache, optimizer=optimizer, clip_norm=clip), cache)
        applied = []
        engine.stepper.optimizer.register_step_pre_hook(
            lambda o, *_, to=applied, m=engine.model: to.append(
                torch.stack([p.grad.norm() for p in m.parameters()]).norm().item()
            )
        )
        engine.step()
        norms[clip] = (engine.state.history.grad_norm[0], applied[0])
    assert norms[None][0] == pytest.approx(norms[None][1], rel=1e-5)
    assert norms[0.01][0] == pytest.approx(norms[None][0], rel=1e-6)
    assert norms[0.01][1] == pytest.approx(0.01, rel=1e-3)


def test_8bit_adamw_keeps_uint8_state_on_a_real_weight(prepared, store):
    data, cache = prepared
    optimizer = {"kind": "adamw8bit", "lr": 3e-3}
    trial = make_trial(data, cache, steps=3, optimizer=optimizer, model={"d_model": 64, "mixer": MHA})
    _, record = train(store, "8bit", trial, cache)
    engine = Engine(trial, cache)
    engine.restore(final_files(record))  # what a resumed process works with
    states = {name: engine.stepper.optimizer.state[p] for name, p in engine.model.named_parameters()}
    gate = states["layers.0.ffn.gate.weight"]
    assert gate["state1"].shape == gate["state2"].shape == (64, 64)
    assert gate["state1"].dtype == gate["state2"].dtype == torch.uint8
    assert gate["state1"].unique().numel() > 10
    assert states["final_norm.weight"]["state1"].dtype == torch.float32  # below the smallest size


def test_8bit_adamw_trains_like_adamw(prepared, store):
    data, cache = prepared
    ends = {}
    for kind in ("adamw", "adamw8bit"):
        trial = make_trial(data, cache, steps=20, optimizer={"kind": kind, "lr": 3e-3}, model={"d_model": 64})
        ends[kind] = train(store, kind, trial, cache)[0].final["val_loss"]
    assert ends["adamw8bit"] == pytest.approx(ends["adamw"], abs=0.05)
    assert ends["adamw8bit"] != ends["adamw"]


def test_compiled_layers_train_alike_and_are_kept_for_a_like_trial(prepared, store, monkeypatch):
    data, cache = prepared
    built = []

    def backend(graph, inputs):  # traces and guards as the real one, without its code generation
        built.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    like = make_trial(data, cache, steps=4, batch_size=4).model_copy(update={"seed": 0})
    plain, _ = train(store, "plain", like, cache)
    counts = []
    for name, seed in (("compiled", 0), ("again", 0), ("other seed", 1)):
        spec = make_trial(data, cache, steps=4, batch_size=4, compile=True).model_copy(update={"seed": seed})
        outcome, _ = train(store, name, spec, cache)
        if seed == 0:
            assert outcome.final["train_loss"] == pytest.approx(plain.final["train_loss"], abs=5e-6)
        counts.append(len(built))
    # One graph serves all layers; evaluations run uncompiled; like trials compile nothing.
    assert counts[0] == counts[2] > 0
    wider = make_trial(data, cache, steps=4, batch_size=2, compile=True)
    train(store, "other shape", wider, cache)
    assert len(built) > counts[2]
