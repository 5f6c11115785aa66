"""Everything measured at the end, and the test split."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fabric.evaluate import test as test_split
from fabric.evaluate.again import final_row
from fabric.evaluate.config import EvaluateConfig
from fabric.evaluate.final import final_metrics
from fabric.job.metrics import metric_info
from fabric.planning.trial import TrialSpec
from fabric.store import FINISHED, RUNNING, Store
from fabric.train.checkpoint import save_checkpoint, unique_tensors
from fabric.train.step import autocast

SEQ_LEN = 32
FULL = EvaluateConfig(lengths=(16, 64), batch_sizes=(1, 2), samples={"n": 4, "tokens": 8})


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two paradigms, of which the larger one is decided the other way round: the mean is over paradigms."""
    row = '{"sentence_good": "the cat sat", "sentence_bad": "sat cat the"}\n'
    turned = '{"sentence_good": "sat cat the", "sentence_bad": "the cat sat"}\n'
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "one.jsonl").write_text(row)
    (folder / "three.jsonl").write_text(3 * turned)
    return folder


def measure(model, cache, config, batch_size=8, precision="fp32"):
    return final_metrics(
        model, cache, config, seq_len=SEQ_LEN, batch_size=batch_size, seed=5, precision=precision
    )


def is_speed(key: str) -> bool:
    return key.startswith("tokens_per_second")


def test_every_key_is_a_known_metric(model, cache, pairs):
    metrics, beside = measure(model, cache, FULL.model_copy(update={"minimal_pairs": pairs}))
    texts = beside["samples"]
    assert sorted(beside["minimal_pairs"].values()) == [0.0, 1.0]
    assert metrics["minimal_pairs_accuracy"] == 0.5, "the mean over paradigms, not over pairs"
    assert [k for k in metrics if metric_info(k) is None] == []
    assert [k for k, v in metrics.items() if v is None or not np.isfinite(v)] == []
    assert len(texts) == 4
    assert all(isinstance(t, str) for t in texts)
    assert {"val_loss", "recall_accuracy", "minimal_pairs_accuracy", "distinct_1"} <= metrics.keys()
    assert {"val_loss_at_16", "tokens_per_second_at_64", "tokens_per_second_batch_2"} <= metrics.keys()


def test_what_is_not_asked_for_is_not_measured(model, cache):
    bare = EvaluateConfig(recall=False, samples=None)
    metrics, beside = measure(model, cache, bare)
    assert set(metrics) == {"val_loss", "val_perplexity", "val_bits_per_byte", "state_bytes_per_token"}
    assert beside == {}


def test_batch_size_changes_nothing_but_speeds(model, cache, pairs):
    config = FULL.model_copy(update={"minimal_pairs": pairs})
    (a, beside_a), (b, beside_b) = measure(model, cache, config, 1), measure(model, cache, config, 7)
    assert beside_a == beside_b
    assert a.keys() == b.keys()
    for key in a:
        if not is_speed(key):
            assert a[key] == pytest.approx(b[key], rel=1e-6, abs=1e-6), key


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_random_state_are_left_alone(model, cache, training):
    model.train(training)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    weights = [p.clone() for p in model.parameters()]
    measure(model, cache, FULL)
    assert model.training is training
    assert all(m.training is training for m in model.modules() if isinstance(m, nn.Module))
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_lengths_beyond_the_model_or_the_split_are_none(model, cache):
    config = EvaluateConfig(recall=False, samples=None, lengths=(16, 256, 128, 10**6))
    longer_than_split = cache.n_rows("validation", 10**6) == 0
    assert longer_than_split
    metrics, _ = measure(model, cache, config)
    assert metrics["val_loss_at_16"] > 0
    for length in (256, 10**6):  # the model ends at 128
        assert metrics[f"val_loss_at_{length}"] is None
        assert metrics[f"tokens_per_second_at_{length}"] is None


def test_samples_and_recall_that_do_not_fit_are_none(model, cache):
    metrics, beside = measure(model, cache, EvaluateConfig(samples={"n": 1, "tokens": 500}))
    assert metrics["distinct_1"] is None
    assert beside["samples"] == []
    short, _ = final_metrics(
        model, cache, EvaluateConfig(samples=None), seq_len=3, batch_size=8, seed=0, precision="fp32"
    )
    assert short["recall_accuracy"] is None


def test_a_batch_that_does_not_fit_in_memory_is_none(model, cache, monkeypatch):
    from fabric.evaluate import behaviour

    original = behaviour._speed

    def speed(model, batch_size, *how):
        if batch_size > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return original(model, batch_size, *how)

    monkeypatch.setattr(behaviour, "_speed", speed)
    metrics, _ = measure(model, cache, EvaluateConfig(recall=False, samples=None, batch_sizes=(1, 2)))
    assert metrics["tokens_per_second_batch_1"] > 0
    assert metrics["tokens_per_second_batch_2"] is None


def test_bf16_is_near_fp32(model, cache):
    config = EvaluateConfig(samples=None)
    exact, _ = measure(model, cache, config)
    rough, _ = measure(model, cache, config, precision="bf16")
    assert rough["val_loss"] == pytest.approx(exact["val_loss"], rel=0.02)
    assert rough["val_loss"] != exact["val_loss"]
    with autocast("cpu", "fp32"):
        assert not torch.is_autocast_enabled("cpu")


def trial_of(prepared, body) -> TrialSpec:
    config, cache = prepared
    train = {"tokens": 4 * SEQ_LEN, "batch_size": 2, "optimizer": {"kind": "adamw", "lr": 1e-3}}
    train["schedule"] = {"kind": "cosine", "warmup": 1}
    return TrialSpec.model_validate(
        {"model": body, "data": config, "data_key": cache.key, "train": train, "seed": 0}
    )


def finished_trial(prepared, body, model, folder):
    spec = trial_of(prepared, body)
    record = Store(folder).trial(spec.id)
    attempt = record.new_attempt({"evaluation": spec.evaluation_key})
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(attempt, 2, unique_tensors(model), optimizer.state_dict(), {}, 1)
    return spec, record, attempt


def test_the_test_split_is_read_once(prepared, body, model, tmp_path, monkeypatch):
    spec, record, attempt = finished_trial(prepared, body, model, tmp_path)
    attempt.write_status(FINISHED, 2, {"kind": "completed"}, {"val_loss": 5.0})
    first = test_split.read_test_split(spec, record, prepared[1])
    file = tmp_path / record.prefix / "evaluations" / f"{test_split.test_key(spec)}.json"
    before = file.read_bytes(), file.stat().st_mtime_ns

    def reading_again(*_, **__):
        raise AssertionError("the split was read twice")

    monkeypatch.setattr("fabric.evaluate.lm.score", reading_again)
    assert test_split.read_test_split(spec, record, prepared[1]) == first
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert [k for k in first if k.startswith("test_") and metric_info(k) is None] == []


def test_the_test_loss_is_that_of_the_last_weights(prepared, body, model, tmp_path):
    from fabric.evaluate.lm import score

    spec, record, attempt = finished_trial(prepared, body, model, tmp_path)
    attempt.write_status(FINISHED, 2, {"kind": "completed"}, {"val_loss": 5.0})
    found = test_split.read_test_split(spec, record, prepared[1])
    expected = score(model, prepared[1], "test", SEQ_LEN)
    assert found["test_loss"] == pytest.approx(expected.loss, abs=1e-6)
    assert found["n_tokens"] == expected.n_tokens
    assert found["test_loss"] != score(model, prepared[1], "validation", SEQ_LEN).loss


def test_an_unfinished_trial_is_not_tested(prepared, body, model, tmp_path):
    spec, record, attempt = finished_trial(prepared, body, model, tmp_path)
    with pytest.raises(RuntimeError, match="not begun"):
        test_split.read_test_split(spec, record, prepared[1])
    attempt.write_status(RUNNING, 1)
    with pytest.raises(RuntimeError, match="is running"):
        test_split.read_test_split(spec, record, prepared[1])
    assert record.evaluation_keys() == []


def test_a_finished_trial_without_a_checkpoint_says_so(prepared, body, tmp_path):
    spec = trial_of(prepared, body)
    record = Store(tmp_path).trial(spec.id)
    record.new_attempt({}).write_status(FINISHED, 2)
    with pytest.raises(RuntimeError, match="no checkpoint"):
        test_split.read_test_split(spec, record, prepared[1])


def test_a_trial_measured_again_has_nothing_left_of_the_measurements_before(prepared, body, model, tmp_path):
    spec, record, attempt = finished_trial(prepared, body, model, tmp_path)
    before = {"val_loss": 5.0, "recall_accuracy": 0.5, "distinct_1": 0.5, "tokens_per_second": 7.0, "step": 2}
    attempt.write_status(FINISHED, 2, {"kind": "completed"}, before)
    evaluate = EvaluateConfig(recall=False, samples=None, final_val_tokens=2 * SEQ_LEN)
    row = final_row(spec.model_copy(update={"evaluate": evaluate}), record, prepared[1])
    assert row["val_loss"] != before["val_loss"]
    assert (row["tokens_per_second"], row["step"]) == (7.0, 2)
    assert not {"recall_accuracy", "distinct_1"} & set(row)
