import resource

import pytest
from train_kit import Reports, losses, make_trial, run_child

from fabric.store import FAILED, FINISHED, Store
from fabric.train import loop
from fabric.train.directive import CheckpointAndExit
from fabric.train.memory import OutOfMemory
from fabric.train.step import Stepper

SHORTAGE = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: tried 9 bytes"
WIDE = {"d_model": 128, "n_layers": 4, "max_seq_len": 64, "ffn": {"kind": "swiglu", "d_ff": 512}}


def wide_trial(data, cache):
    return make_trial(
        data.model_copy(update={"seq_len": 64}),
        cache,
        steps=3,
        batch_size=64,
        model=WIDE,
        evaluate={"times": 1},
    )


def train_with_little_memory(trial, folder, cache, mib):
    """Target of a child: train with `mib` MiB of address space more than it has when it begins."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + mib * 2**20, resource.RLIM_INFINITY))
    loop.run(trial, Store(folder).trial(trial.id), cache)


def test_a_real_allocation_failure_halves_the_micro_batch(prepared, store):
    data, cache = prepared
    trial = wide_trial(data, cache)
    assert run_child(train_with_little_memory, trial, store.root, cache, 120) == 0
    record, whole = store.trial(trial.id), store.trial("whole")
    assert record.status().state == FINISHED
    events = record.status().final["events"]
    assert events, "the limit was not reached: the test proves nothing"
    assert (events[0]["kind"], events[0]["from"], events[0]["to"], events[0]["step"]) == (
        "micro_batch",
        64,
        32,
        1,
    )
    assert record.metrics()[0]["events"][0] == events[0]
    loop.run(trial, whole, cache)
    assert whole.status().final["events"] == []
    for (_, a), (_, b) in zip(losses(record), losses(whole), strict=True):
        assert a == pytest.approx(b, abs=5e-6)


def starved(monkeypatch, fits, error):
    """Micro-batches above `fits` fail, after a part of their gradients is there."""
    gradients = Stepper.gradients

    def limited(self, ids, targets, micro):
        if micro > fits:
            gradients(self, ids[:1], targets[:1], 1)
            raise error
        return gradients(self, ids, targets, micro)

    monkeypatch.setattr(Stepper, "gradients", limited)


@pytest.mark.parametrize("error", [RuntimeError(SHORTAGE), MemoryError()])
def test_the_step_is_redone_whole_and_the_size_outlives_a_resume(prepared, store, monkeypatch, error):
    data, cache = prepared
    trial = make_trial(data, cache, steps=6, evaluate={"times": 3})
    loop.run(trial, store.trial("micro-1"), cache, micro_batch_size=1)
    starved(monkeypatch, 1, error)
    record = store.trial(trial.id)
    loop.run(trial, record, cache, report=Reports({2: CheckpointAndExit()}))
    loop.run(trial, record, cache)
    assert losses(record) == losses(store.trial("micro-1"))
    events = record.status().final["events"]
    assert [(e["from"], e["to"], e["step"]) for e in events] == [(4, 2, 1), (2, 1, 1)]


def test_not_even_one_sequence_fits(prepared, store, monkeypatch):
    data, cache = prepared
    starved(monkeypatch, 0, RuntimeError(SHORTAGE))
    trial = make_trial(data, cache)
    with pytest.raises(
        OutOfMemory, match=r"step 1 with a micro-batch of one sequence of 32 tokens.*use a smaller"
    ):
        loop.run(trial, store.trial(trial.id), cache)
    status = store.trial(trial.id).status()
    assert (status.state, status.reason["kind"]) == (FAILED, "out_of_memory")


def test_other_errors_are_not_taken_for_a_shortage(prepared, store, monkeypatch):
    data, cache = prepared
    starved(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        loop.run(make_trial(data, cache), store.trial("x"), cache)
    assert store.trial("x").status().reason["kind"] == "failed"
