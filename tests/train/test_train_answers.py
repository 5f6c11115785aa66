"""Training on labelled examples: the loss, what is right, and that trials of them resume, split up and are measured."""

import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_train_resume import assert_equal_ends
from torch.utils.flop_counter import FlopCounterMode
from train_kit import Reports, die_before_step, losses, make_trial, run_child

from fabric.data import DataConfig, ExampleCache, prepare
from fabric.evaluate import lm
from fabric.evaluate.test import read_test_split
from fabric.job.metrics import METRICS
from fabric.planning.cost import training_flops
from fabric.store import FINISHED, RUNNING
from fabric.train import loop
from fabric.train.checkpoint import load_model, newest_checkpoint
from fabric.train.engine import Engine
from fabric.train.objectives.answers import Answers
from models import flops_per_token

ANSWERS = Answers(kind="answers")
SEQ_LEN = 32
MQAR = {"kind": "mqar", "n_pairs": 4, "vocab_size": 40, "n_train": 400, "n_validation": 60, "n_test": 50}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """(DataConfig, ExampleCache) of a small MQAR."""
    config = DataConfig.model_validate({"examples": MQAR, "seq_len": SEQ_LEN})
    return config, prepare(config, tmp_path_factory.mktemp("examples"))


def answering(data, cache, **options):
    return make_trial(data, cache, objective={"kind": "answers"}, **options)


@pytest.fixture
def model(labelled):
    data, cache = labelled
    trial = answering(data, cache, model={"init": {"std": 0.3}})
    return trial.train.objective.build(trial.model, 0)


def uneven_rows(n=6, seed=0):
    """Rows of different lengths that ask from one to seven positions."""
    random = np.random.default_rng(seed)
    rows = np.full((n, 2, SEQ_LEN), -1)
    rows[:, 1] = -100
    for i, row in enumerate(rows):
        length = SEQ_LEN - 3 * i
        row[0, :length] = random.integers(0, 40, length)
        asked = random.choice(length, 1 + i, replace=False)
        row[1, asked] = random.integers(0, 40, 1 + i)
    return rows


def pair_of(rows):
    return tuple(map(torch.from_numpy, ANSWERS.examples(rows, seed=0, step=0, n_ids=40)))


def by_hand(model, ids, targets):
    """Each row's mean of cross entropies of its targets."""
    logits = model(ids).logits.double()
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return (each * (targets != -100)).sum(1) / (targets != -100).sum(1)


@pytest.mark.parametrize("n_pairs", [1, 4, 8])
def test_flops_of_the_output_matrix_are_those_counted(labelled, n_pairs):
    """Of asked positions alone: products of the whole model less those of its hidden states."""
    data = DataConfig.model_validate({"examples": {**MQAR, "n_pairs": n_pairs}, "seq_len": SEQ_LEN})
    trial = answering(data, labelled[1])
    model = trial.train.objective.build(trial.model, 0)
    ids_NT, targets_NT, _ = data.examples.draw(np.random.default_rng(0), 5, SEQ_LEN)
    ids, targets = pair_of(np.stack((ids_NT, targets_NT), axis=1))
    with torch.no_grad(), FlopCounterMode(display=False) as hidden:
        model.hidden(ids)
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        ANSWERS.sum_nll(model, ids, targets)
    counted = (whole.get_total_flops() - hidden.get_total_flops()) / ids.numel()
    everywhere = 2 * trial.model.d_model * trial.model.vocab_size
    before = flops_per_token(trial.model, SEQ_LEN) - everywhere
    assert counted > 0
    assert ANSWERS.flops_per_token(trial.model, SEQ_LEN, data.n_asked) == pytest.approx(before + counted)
    assert ANSWERS.flops_per_token(trial.model, SEQ_LEN) == before + everywhere, "the upper bound"
    assert ANSWERS.flops_per_token(trial.model, SEQ_LEN, SEQ_LEN) == before + everywhere


def test_plan_trial_and_speed_count_the_same_flops(labelled, store):
    data, cache = labelled
    trial = answering(data, cache, steps=4)
    forward = ANSWERS.flops_per_token(trial.model, SEQ_LEN, 4)
    assert forward < ANSWERS.flops_per_token(trial.model, SEQ_LEN)
    assert training_flops(trial) == 3 * forward * 4 * 4 * SEQ_LEN
    outcome = loop.run(trial, store.trial(trial.id), cache)
    assert outcome.final["flops"] == training_flops(trial)
    assert Engine(trial, cache).flops_per_token == 3 * forward
    rows = ANSWERS.random_rows(3, SEQ_LEN, 40, data.n_asked)
    assert ((rows[:, 1] != -100).sum(1) == 4).all(), "what speed is measured on asks as much"


def test_the_loss_is_the_mean_over_rows_of_each_rows_mean(model):
    ids, targets = pair_of(uneven_rows())
    assert (ids >= 0).all()
    want = by_hand(model, ids, targets)
    assert ANSWERS.sum_nll(model, ids, targets).item() == pytest.approx(want.sum().item(), abs=1e-5)
    judged = ANSWERS.judged(model, ids, targets)
    torch.testing.assert_close(judged.nll_B, want, atol=1e-6, rtol=0)
    right = (model(ids).logits.argmax(-1) == targets).sum(1)
    assert torch.equal(judged.n_right_B, right)
    assert judged.n_asked_B.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("chunk", [None, 4])
def test_gradients_are_those_by_hand_in_chunks_too(model, chunk, monkeypatch):
    if chunk is not None:
        monkeypatch.setattr("fabric.train.loss.rows_at_once", lambda *_: chunk)
    ids, targets = pair_of(uneven_rows())
    found = torch.autograd.grad(ANSWERS.sum_nll(model, ids, targets), list(model.parameters()))
    want = torch.autograd.grad(by_hand(model, ids, targets).sum(), list(model.parameters()))
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_neither_padding_nor_what_follows_changes_a_loss(model):
    rows = uneven_rows()
    ids, targets = pair_of(rows)
    want = ANSWERS.judged(model, ids, targets).nll_B
    others = torch.where(torch.from_numpy(rows[:, 0]) < 0, torch.tensor(17), ids)
    assert torch.equal(ANSWERS.judged(model, others, targets).nll_B, want)


@pytest.mark.parametrize("step", [3, 7])
def test_killed_and_resumed(labelled, store, step):
    data, cache = labelled
    trial = answering(data, cache, steps=10, checkpoint={"every_steps": 4, "every_seconds": None})
    killed, whole = store.trial(trial.id), store.trial("whole")
    assert run_child(die_before_step, trial, store.root, cache, step) == -signal.SIGKILL
    assert killed.status().state == RUNNING
    assert loop.run(trial, killed, cache).state == FINISHED
    loop.run(trial, whole, cache)
    assert_equal_ends(killed, whole)


def test_micro_batches_change_the_losses_by_rounding_only(labelled, store):
    data, cache = labelled
    found = []
    for micro in (4, 2, 1):
        trial = answering(data, cache, steps=6, micro_batch_size=micro)
        loop.run(trial, store.trial(f"micro-{micro}"), cache)
        found.append([loss for _, loss in losses(store.trial(f"micro-{micro}"))])
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=5e-6)


def test_what_is_measured(labelled, store):
    data, cache = labelled
    assert isinstance(cache, ExampleCache)
    trial = answering(
        data, cache, steps=4, evaluate={"lengths": (16,), "batch_sizes": (2,), "final_val_tokens": None}
    )
    record, report = store.trial(trial.id), Reports()
    final = loop.run(trial, record, cache, report=report).final
    model = load_model(trial, newest_checkpoint(record)[1])
    ids, targets = pair_of(cache.rows("validation", SEQ_LEN, range(60)))
    assert final["val_loss"] == pytest.approx(by_hand(model, ids, targets).mean().item(), abs=1e-6)
    asked = targets != -100
    right = (model(ids).logits.argmax(-1) == targets) & asked
    assert final["val_accuracy"] == right.sum().item() / (60 * 4)
    assert final["val_exact"] == (right.sum(1) == 4).sum().item() / 60
    for row in report.rows:
        assert row["val_perplexity"] is row["val_bits_per_byte"] is None
        assert 0 <= row["val_exact"] <= row["val_accuracy"] <= 1
    assert final["val_loss_at_16"] is None
    assert final["tokens_per_second_batch_2"] > 0
    test = read_test_split(trial, record, cache)
    assert test["test_perplexity"] is test["test_bits_per_byte"] is None
    assert 0 <= test["test_exact"] <= test["test_accuracy"] <= 1
    assert not set(test) - set(METRICS) - {"n_tokens"}


def test_scores_do_not_depend_on_the_batch_size(labelled, model):
    _, cache = labelled
    found = [
        lm.score(model, cache, "test", SEQ_LEN, batch_size=size, objective=ANSWERS) for size in (1, 7, 50)
    ]
    for other in found[1:]:
        assert other.loss == pytest.approx(found[0].loss, abs=1e-6)
        assert (other.accuracy, other.exact) == (found[0].accuracy, found[0].exact)


def test_rows_that_an_objective_does_not_take_are_refused(labelled, prepared):
    data, cache = labelled
    with pytest.raises(ValueError, match=r"next_token reads windows of a text.*\{kind: answers\}"):
        Engine(make_trial(data, cache), cache)
    with pytest.raises(ValueError, match=r"answers reads labelled examples.*data\.examples"):
        Engine(answering(*prepared), prepared[1])


@pytest.mark.slow
def test_two_ranks_train_as_one_process(labelled, tmp_path):
    from ranks_kit import Ranks, train
    from test_train_ranks import agree

    data, cache = labelled
    alone = answering(data, cache, steps=6, micro_batch_size=1)
    wanted = train(alone.model_dump_json(), tmp_path / "alone", cache.path)
    ranks = Ranks(2)
    try:
        pair = alone.model_copy(update={"ranks": type(alone.ranks)(workers=2)})
        agree(ranks.train(pair, tmp_path / "pair", cache.path), wanted)
    finally:
        ranks.end()
    assert len(wanted) == 6
