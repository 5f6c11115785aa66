"""Several ranks over gloo, torch's engine and DeepSpeed's, against one process: the same trial, the same numbers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from ranks_kit import Ranks, train
from train_kit import make_cache, make_trial, write_text

from fabric.data import DataConfig, prepare
from fabric.store import Store
from fabric.train.checkpoint import newest_checkpoint
from fabric.train.meters import WARMUP_STEPS
from fabric.train.zero import _compiling_nothing

ENGINES = {
    "torch": {"engine": "torch"},
    **{f"zero{stage}": {"engine": "deepspeed", "zero_stage": stage} for stage in range(4)},
}


@pytest.fixture(scope="module")
def pair():
    found = Ranks(2)
    yield found
    found.end()


@pytest.fixture(scope="module")
def four():
    found = Ranks(4)
    yield found
    found.end()


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("ranks"))


def trial_of(cached, engine="torch", workers=2, **options):
    trial = make_trial(*cached, **{"steps": 20, "micro_batch_size": 1, **options})
    return trial.model_copy(update={"ranks": type(trial.ranks)(workers=workers, **ENGINES[engine])})


def agree(found, wanted, tolerance=5e-6):
    assert [(r[0], r[3]) for r in found] == [(r[0], r[3]) for r in wanted], "steps, and the tokens they read"
    for ours, theirs in zip(found, wanted, strict=True):
        for a, b in ((ours[1], theirs[1]), (ours[4], theirs[4])):
            assert (a is None) == (b is None)
            assert a is None or abs(a - b) <= tolerance, (ours, theirs)
        assert ours[2] == pytest.approx(theirs[2], rel=20 * tolerance)


@pytest.fixture(scope="module")
def alone(cached, tmp_path_factory):
    """The trial in one process, by precision."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        precision: train(
            trial_of(cached, workers=1, precision=precision).model_dump_json(),
            folder / precision,
            cached[1].path,
        )
        for precision in ("fp32", "bf16")
    }


@pytest.fixture(scope="module")
def fifty(cached, tmp_path_factory):
    """The trial of fifty steps in one process."""
    folder = tmp_path_factory.mktemp("fifty")
    return train(trial_of(cached, workers=1, steps=50).model_dump_json(), folder, cached[1].path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("engine", ENGINES)
def test_fifty_steps_are_those_of_one_process(request, cached, fifty, tmp_path, engine, workers):
    ranks = request.getfixturevalue({2: "pair", 4: "four"}[workers])
    found = ranks.train(trial_of(cached, engine, workers, steps=50), tmp_path, cached[1].path)
    assert len(found) == 50
    agree(found, fifty)


@pytest.mark.parametrize("engine", ["torch", "zero2"])
def test_a_checkpoint_of_four_goes_on_with_two_and_alone(pair, four, cached, alone, tmp_path, engine):
    (middle,) = [r[0] for r in alone["fp32"] if r[4] is not None and r[0] < 20]
    four.train(trial_of(cached, engine, 4), tmp_path / "a", cached[1].path, middle)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    agree(pair.train(trial_of(cached, "zero3"), tmp_path / "a", cached[1].path), alone["fp32"])
    rows = train(trial_of(cached, workers=1).model_dump_json(), tmp_path / "b", cached[1].path)
    agree(rows, alone["fp32"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_train_as_one_process(pair, cached, alone, tmp_path, engine, precision):
    trial = trial_of(cached, engine, precision=precision)
    agree(
        pair.train(trial, tmp_path, cached[1].path), alone[precision], 5e-6 if precision == "fp32" else 5e-3
    )
    exchange_is_told(Store(tmp_path).trial(trial.id), is_timed=engine not in ("zero2", "zero3"))


def exchange_is_told(record, is_timed):
    """After the warm-up every row says how long it waited for gradients, the last one which share of a step it is."""
    *rows, final = record.metrics()
    waits = [r["exposed_allreduce_seconds"] for r in rows if "exposed_allreduce_seconds" in r]
    share = final["exposed_allreduce_fraction"]
    if not is_timed:
        assert (waits, share) == ([], None)
        return
    assert len(waits) == sum(r["step"] > WARMUP_STEPS for r in rows) > 0
    assert min(waits) > 0
    assert 0 < share < 1
    assert final["exposed_allreduce_seconds"] > 0


def test_deepspeed_s_own_optimizers_are_not_compiled():
    """`@torch.compile()` loads the compiler, wherever it is written."""
    before = torch.compile
    with _compiling_nothing():
        assert torch.compile(dynamic=True)(len) is torch.compile(len) is len
    assert torch.compile is before


def test_one_process_has_nothing_to_wait_for(cached, tmp_path):
    trial = trial_of(cached, workers=1)
    train(trial.model_dump_json(), tmp_path, cached[1].path)
    assert not any(k.startswith("exposed") for r in Store(tmp_path).trial(trial.id).metrics() for k in r)


ENCODER = {
    "causal": False, "vocab_size": 300, "positions": "learned", "embedding_norm": True, "token_types": 2,
    "norm": {"kind": "layernorm"}, "norm_placement": "postln", "ffn": {"kind": "gelu", "d_ff": 64, "bias": True},
}  # fmt: skip
MLA = {"kind": "mla", "n_heads": 4, "kv_latent_dim": 16, "qk_nope_dim": 8, "qk_rope_dim": 4, "v_head_dim": 8}


@pytest.mark.parametrize(
    "options",
    [
        {"model": {"tie_embeddings": False}, "mixer": MLA},
        {"model": ENCODER, "mixer": {"kind": "mha", "n_heads": 4, "position": "nope", "bias": True},
         "objective": {"kind": "denoise"}},
    ],
    ids=["latent attention, untied", "encoder"],
)  # fmt: skip
@pytest.mark.parametrize("engine", ["torch", "zero3"])
def test_other_architectures_and_objectives_too(pair, cached, tmp_path, engine, options):
    """ZeRO-3 gathers what is read outside of the layers: output matrices, positions, token types."""
    wanted = train(
        trial_of(cached, workers=1, steps=6, **options).model_dump_json(), tmp_path / "a", cached[1].path
    )
    agree(pair.train(trial_of(cached, engine, steps=6, **options), tmp_path / "b", cached[1].path), wanted)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_of_two_goes_on_alone_and_back(pair, cached, alone, tmp_path, engine):
    trial = trial_of(cached, engine)
    (middle,) = [r[0] for r in alone["fp32"] if r[4] is not None and r[0] < 20]
    pair.train(trial, tmp_path / "a", cached[1].path, middle)
    files = newest_checkpoint(Store(tmp_path / "a").trial(trial.id))
    assert files is not None
    assert set(files[1]) == {"model.safetensors", "optimizer.pt", "state.pt"}
    rows = train(trial_of(cached, workers=1).model_dump_json(), tmp_path / "a", cached[1].path)
    agree(rows, alone["fp32"])
    # And the other way.
    train(trial_of(cached, workers=1).model_dump_json(), tmp_path / "b", cached[1].path, middle)
    agree(pair.train(trial, tmp_path / "b", cached[1].path), alone["fp32"])


@pytest.mark.filterwarnings("ignore:checkpoint .* is damaged")
def test_ranks_that_would_go_on_from_different_steps_do_not(pair, cached, alone, tmp_path):
    trial = trial_of(cached)
    (middle,) = [r[0] for r in alone["fp32"] if r[4] is not None and r[0] < 20]
    train(trial_of(cached, workers=1).model_dump_json(), tmp_path / "0", cached[1].path, middle)
    with pytest.raises(
        ValueError, match=r"rank 0: step \d+, rank 1: none\): keep the records where all nodes"
    ):
        pair.train(trial, tmp_path / "{rank}", cached[1].path)
    assert Store(tmp_path / "0").trial(trial.id).attempt_numbers() == [1], "no attempt was begun"


@pytest.mark.parametrize("leaver", [0, 1])
def test_all_leave_with_a_checkpoint_when_one_is_taken_away(pair, cached, alone, tmp_path, leaver):
    trial = trial_of(cached, "zero2")
    pair.train(trial, tmp_path, cached[1].path, None, leaver)
    left = Store(tmp_path).trial(trial.id).status()
    assert (left.state, left.reason, left.step) == ("stopped", {"kind": "preempted"}, 1)
    agree(pair.train(trial, tmp_path, cached[1].path), alone["fp32"])


def rows_read(record, rank):
    """(position, row) of all rows that a rank has written down, in order."""
    found = []
    for attempt in record.attempt_numbers():
        names = [n for n in record.objects.list(f"{record.prefix}/attempts/{attempt}") if "/rows-" in n]
        logs = [json.loads(record.objects.get(n) or b"") for n in names]
        found += [
            (p, row)
            for log in logs
            if rank < len(log["ranks"])
            for p, _, first, end in log["ranks"][rank]
            for row in range(first, end)
        ]
    return found


def a_stream(folder):
    write_text(folder / "text.txt", n_documents=200)
    stream = {"unit_bytes": 2048, "held_out_bytes": 2048}
    data = DataConfig(corpus=str(folder / "text.txt"), seq_len=32, stream=stream)
    return data, prepare(data, folder / "cache")


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_deepspeed_reads_a_stream_as_torchs_engine_does(pair, tmp_path, engine):
    cached = a_stream(tmp_path)
    wanted = pair.train(trial_of(cached), tmp_path / "a", cached[1].path)
    agree(pair.train(trial_of(cached, engine), tmp_path / "b", cached[1].path), wanted)
    logs = [[rows_read(Store(tmp_path / f).trial(trial_of(cached, e).id), rank) for rank in range(2)]
            for f, e in (("a", "torch"), ("b", engine))]  # fmt: skip
    assert logs[0] == logs[1]


def test_two_ranks_of_a_stream_never_read_one_row_and_one_goes_on_where_both_were(pair, tmp_path):
    """After twenty steps every row of the first units is read once, whoever read it."""
    cached = a_stream(tmp_path)
    trial = trial_of(cached, workers=(1, 2))
    rows = pair.train(trial, tmp_path / "a", cached[1].path, 10)
    record = Store(tmp_path / "a").trial(trial.id)
    mine, theirs = (rows_read(record, rank) for rank in range(2))
    assert len(mine) == len(theirs) == 10 * trial.train.batch_size / 2
    assert not set(mine) & set(theirs)
    assert len({r[3] for r in rows}) == 10, "a hash a batch, of both ranks' rows"
    alone = train(trial.model_dump_json(), tmp_path / "a", cached[1].path)
    assert [r[0] for r in alone] == list(range(1, 21))
    everything = rows_read(record, 0) + theirs
    assert len(set(everything)) == len(everything) == 20 * trial.train.batch_size
    for position in {p for p, _ in everything}:
        found = sorted(row for p, row in everything if p == position)
        assert found == list(range(len(found))), "none is skipped"
