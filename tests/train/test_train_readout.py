"""Fine-tuning with a readout: losses by hand, what is learned, resuming, ranks, low-rank adaptation."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_train_resume import assert_equal_ends
from train_kit import die_before_step, losses, make_trial, run_child

from fabric.data import DataConfig, prepare
from fabric.data.examples.base import BEGINS, ENDS, NUMBER_STEP
from fabric.store import FINISHED, RUNNING
from fabric.train import loop
from fabric.train.checkpoint import load_model, newest_checkpoint, unique_tensors
from fabric.train.objectives.base import BY_ASKS
from fabric.train.objectives.classify import Classify
from fabric.train.objectives.regress import Regress
from fabric.train.objectives.span import Span
from fabric.train.objectives.tag import Tag
from fabric.train.start import keep_weights, weights_file
from models import ModelConfig, build

ROWS = Path(__file__).parents[1] / "evaluate" / "rows"
CASES = {
    "class": ({"kind": "labelled_texts", "dataset": "sst2"}, 64),
    "number": ({"kind": "labelled_texts", "dataset": "stsb"}, 80),
    "tags": ({"kind": "tagged_words", "dataset": "conll2003"}, 64),
    "span": ({"kind": "answer_spans", "dataset": "squad", "question_tokens": 24, "overlap": 12}, 96),
}
U = -100


@pytest.fixture(scope="module")
def prepared_examples(tmp_path_factory):
    """{what is asked: (DataConfig, ExampleCache)}."""
    root = tmp_path_factory.mktemp("examples")
    found = {}
    for asks, (body, seq_len) in CASES.items():
        data = DataConfig.model_validate({"examples": {**body, "folder": str(ROWS)}, "seq_len": seq_len})
        found[asks] = data, prepare(data, root)
    return found


def fine_tuning(prepared, *, causal=True, **options):
    data, cache = prepared
    objective = {"kind": BY_ASKS[data.examples.asks]}
    T, steps, batch = data.seq_len, options.get("steps", 12), options.get("batch_size", 4)
    trial = make_trial(
        data,
        cache,
        objective=objective,
        model={"causal": causal, "max_seq_len": T},
        tokens=steps * batch * T,
        evaluate={"val_tokens": 6 * T, "final_val_tokens": 12 * T},
        **options,
    )
    train = trial.train.model_copy(update={"objective": trial.train.objective.for_data(data)})
    return trial.model_copy(update={"train": train})


# ---- losses


def test_losses_and_right_answers_are_those_by_hand():
    outputs_AK = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    ends_BT = torch.tensor([[U, 2], [0, U], [U, 1], [1, U], [2, U]])
    each = F.cross_entropy(outputs_AK, torch.tensor([2, 0, 1, 1, 2]), reduction="none")
    torch.testing.assert_close(Classify.row_losses(outputs_AK, ends_BT), each)
    right_B, asked_B = Classify.right(outputs_AK, ends_BT)
    assert right_B.tolist() == (outputs_AK.argmax(-1) == torch.tensor([2, 0, 1, 1, 2])).long().tolist()
    assert asked_B.tolist() == [1] * 5

    numbers_BT = torch.tensor([[U, 20000], [0, U], [U, 50000], [33330, U], [1, U]])
    want = (outputs_AK[:, 0] - torch.tensor([2.0, 0.0, 5.0, 3.333, 0.0001])) ** 2
    torch.testing.assert_close(Regress.row_losses(outputs_AK[:, :1], numbers_BT), want)
    assert NUMBER_STEP == 1e-4
    assert Regress.right(outputs_AK[:, :1], numbers_BT)[1].tolist() == [0] * 5

    words_BT = torch.tensor([[U, 2, 0, 1], [1, U, U, 2]])
    want = torch.stack([each[:3].mean(), each[3:].mean()])
    torch.testing.assert_close(Tag.row_losses(outputs_AK, words_BT), want)
    right_B, asked_B = Tag.right(outputs_AK, words_BT)
    assert asked_B.tolist() == [3, 2]
    hits = outputs_AK.argmax(-1) == torch.tensor([2, 0, 1, 1, 2])
    assert right_B.tolist() == [int(hits[:3].sum()), int(hits[3:].sum())]


def test_the_loss_of_spans_is_that_of_both_ends_among_the_candidates():
    outputs_AK = torch.randn(7, 2, generator=torch.Generator().manual_seed(1))
    targets_BT = torch.tensor([[U, 0, BEGINS, 0, ENDS], [U, U, 0, 0, BEGINS | ENDS]])
    first, second = outputs_AK[:4].log_softmax(0), outputs_AK[4:].log_softmax(0)
    want = torch.stack([-(first[1, 0] + first[3, 1]) / 2, -(second[2, 0] + second[2, 1]) / 2])
    torch.testing.assert_close(Span.row_losses(outputs_AK, targets_BT), want)
    right_B, asked_B = Span.right(outputs_AK, targets_BT)
    hits = [first.argmax(0).tolist() == [1, 3], second.argmax(0).tolist() == [2, 2]]
    assert right_B.tolist() == [int(h) for h in hits]
    assert asked_B.tolist() == [1, 1]


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_the_best_span_is_the_best_of_all_that_are_allowed(longest):
    random = torch.Generator().manual_seed(2)
    objective = Span(kind="span", n_outputs=2, max_answer_tokens=longest)
    for n in (1, 2, 12):
        scores_C2 = torch.randn(n + 1, 2, generator=random)
        targets_BT = torch.zeros(1, n + 1, dtype=torch.long)
        (said,) = objective.read(scores_C2, targets_BT)
        allowed = [(b, e) for b in range(n) for e in range(b, min(n, b + longest))]
        b, e = max(allowed, key=lambda p: float(scores_C2[p[0], 0] + scores_C2[p[1], 1]))
        assert said["best"][:2] == [b, e]
        assert said["best"][2] == pytest.approx(float(scores_C2[b, 0] + scores_C2[e, 1]))
        assert said["none"] == pytest.approx(float(scores_C2[-1].sum()))
    assert objective.read(torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.long))[0]["best"] is None


def test_rows_are_cut_to_the_longest_of_their_batch():
    rows = np.full((2, 2, 9), U)
    rows[:, 0] = -1
    rows[0, 0, :4], rows[1, 0, :2] = 5, 6
    ids, targets = Classify(kind="classify").examples(rows, seed=0, step=0, n_ids=9)
    assert ids.tolist() == [[5, 5, 5, 5], [6, 6, -1, -1]]
    assert targets.shape == ids.shape


# ---- training


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("asks", CASES)
def test_it_learns_what_is_asked(prepared_examples, store, asks, causal):
    _, cache = prepared_examples[asks]
    trial = fine_tuning(prepared_examples[asks], causal=causal, steps=60, batch_size=16)
    final = loop.run(trial, store.trial(trial.id), cache).final
    found = [loss for _, loss in losses(store.trial(trial.id))]
    assert np.mean(found[-5:]) < 0.75 * np.mean(found[:3])
    assert final["val_perplexity"] is None
    if asks == "number":
        assert "val_accuracy" not in final
    else:
        assert 0 <= final["val_exact"] <= final["val_accuracy"] <= 1
    assert final["mfu"] is None
    task = {k for k in final if k.startswith("task.examples.")}
    assert task, "the official metrics of its examples"


@pytest.mark.parametrize("asks", ["tags", "span"])
def test_killed_and_resumed(prepared_examples, store, asks):
    _, cache = prepared_examples[asks]
    trial = fine_tuning(
        prepared_examples[asks], steps=8, checkpoint={"every_steps": 3, "every_seconds": None}
    )
    killed, whole = store.trial(trial.id), store.trial("whole")
    assert run_child(die_before_step, trial, store.root, cache, 6) == -signal.SIGKILL
    assert killed.status().state == RUNNING
    assert loop.run(trial, killed, cache).state == FINISHED
    loop.run(trial, whole, cache)
    assert_equal_ends(killed, whole)


@pytest.mark.parametrize("asks", CASES)
def test_micro_batches_change_the_losses_by_rounding_only(prepared_examples, store, asks):
    _, cache = prepared_examples[asks]
    found = []
    for micro in (4, 1):
        trial = fine_tuning(prepared_examples[asks], steps=5, micro_batch_size=micro)
        loop.run(trial, store.trial(f"micro-{micro}"), cache)
        found.append([loss for _, loss in losses(store.trial(f"micro-{micro}"))])
    assert found[1] == pytest.approx(found[0], abs=5e-6)


def test_what_is_asked_and_what_is_trained_must_agree(prepared_examples):
    data, cache = prepared_examples["tags"]
    for kind, said in (
        ("classify", r"asked for class, and examples of kind tagged_words ask for tags; .*\{kind: tag\}"),
        ("answers", r"asked for ids, and examples of kind tagged_words ask for tags"),
        ("next_token", r"reads windows of a text.*\{kind: tag\}"),
    ):
        trial = make_trial(data, cache, objective={"kind": kind})
        with pytest.raises(ValueError, match=said):
            trial.train.objective.for_data(data)
    with pytest.raises(ValueError, match="n_outputs=3: examples of kind tagged_words have 9; leave it out"):
        Tag(kind="tag", n_outputs=3).for_data(data)


@pytest.mark.slow
def test_two_ranks_train_as_one_process(prepared_examples, tmp_path):
    from ranks_kit import Ranks, train
    from test_train_ranks import agree

    _, cache = prepared_examples["tags"]
    alone = fine_tuning(prepared_examples["tags"], steps=6, micro_batch_size=1)
    wanted = train(alone.model_dump_json(), tmp_path / "alone", cache.path)
    ranks = Ranks(2)
    try:
        for name, how in {"torch": {}, "zero": {"engine": "deepspeed", "zero_stage": 3}}.items():
            pair = alone.model_copy(update={"ranks": type(alone.ranks)(workers=2, **how)})
            agree(ranks.train(pair, tmp_path / name, cache.path), wanted)
    finally:
        ranks.end()
    assert len(wanted) == 6


# ---- low-rank adaptation


@pytest.fixture
def adapting(prepared_examples, tmp_path):
    """A trial that adapts weights that exist, its cache, and their file."""
    _, cache = prepared_examples["class"]
    plain = fine_tuning(prepared_examples["class"], steps=8)
    model = build(ModelConfig.model_validate(plain.model.model_dump()), seed=5)
    key = keep_weights(model, tmp_path / "root")
    body = plain.model_dump(mode="json")
    body["train"]["lora"] = {"rank": 2, "alpha": 4, "targets": ["q", "v"]}
    body["train"]["checkpoint"] = {"every_steps": 3, "every_seconds": None}
    body["weights"] = key
    return type(plain).model_validate(body), cache, weights_file(tmp_path / "root", key), model


def test_adapted_weights_stay_as_they_were_and_the_rest_is_trained(adapting, store):
    trial, cache, file, model = adapting
    assert loop.run(trial, store.trial(trial.id), cache, weights=file).state == FINISHED
    trained = unique_tensors(load_model(trial, newest_checkpoint(store.trial(trial.id))[1]))
    original = unique_tensors(model)
    added = 0
    for name, tensor in trained.items():
        plain = name.removeprefix("trunk.").replace(".base.", ".")
        if plain in original:
            assert torch.equal(tensor, original[plain]), name
        else:
            added += 1
            assert tensor.abs().sum() > 0, name
    assert added == 2 * 2 * trial.model.n_layers + 2


def test_an_adaptation_that_is_killed_goes_on_bit_for_bit(adapting, store):
    trial, cache, file, _ = adapting
    killed, whole = store.trial(trial.id), store.trial("whole")

    def die(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run(trial, killed, cache, weights=file, report=die, rung_tokens=(4 * 5 * 64,))
    assert loop.run(trial, killed, cache, weights=file).state == FINISHED
    loop.run(trial, whole, cache, weights=file)
    assert_equal_ends(killed, whole)


def test_an_adaptation_is_refused_where_it_would_not_be_kept(adapting):
    trial, _, _, _ = adapting
    ranks = type(trial.ranks)(workers=2, engine="deepspeed", zero_stage=1)
    with pytest.raises(ValueError, match=r"train\.lora with engine: deepspeed.*use engine: torch"):
        ranks.check(trial.train, "cpu")
