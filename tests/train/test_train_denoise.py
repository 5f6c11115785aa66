"""Denoising: what is asked of a row, and that trials of it resume, split up, learn and are measured as they should."""

import functools
import hashlib
import math
import signal

import numpy as np
import pytest
import torch
from test_train_resume import assert_equal_ends
from train_kit import SEQ_LEN, Reports, die_before_step, every_mixer, losses, make_trial, run_child

from fabric.evaluate import lm
from fabric.evaluate.test import read_test_split
from fabric.exporting import export, generate
from fabric.job.metrics import METRICS
from fabric.store import FINISHED, RUNNING
from fabric.train import loop
from fabric.train.checkpoint import load_model, newest_checkpoint
from fabric.train.engine import Engine
from fabric.train.objectives.denoise import Denoise
from fabric.trained import load_trained
from models import MaskedLM, flops_per_token
from models.config import MixerConfig
from models.parts import parts_in
from models.presets import PRESETS

PARTS = parts_in("models.mixers", MixerConfig)
MIXERS = {kind: mixer for kind, mixer in every_mixer().items() if not PARTS[kind].CAUSAL_ONLY}
DENOISE = {"kind": "denoise"}
N_IDS = 50


def denoising(data, cache, model=None, objective=DENOISE, **options):
    encoder = {"causal": False, "vocab_size": cache.vocab_size + 1, **(model or {})}
    return make_trial(data, cache, model=encoder, objective=objective, **options)


def rows_of(n=64, n_tokens=101, seed=0):
    return np.random.default_rng(seed).integers(0, N_IDS, (n, n_tokens))


def asked(rows, seed=1, step=2, first_row=0, **options):
    return Denoise(kind="denoise", **options).examples(
        rows, seed=seed, step=step, n_ids=N_IDS, first_row=first_row
    )


# ---- what is asked of a row


def test_what_is_asked_is_a_function_of_seed_step_and_row():
    rows = rows_of()
    ids, targets = asked(rows)
    for first in (0, 1, 40):
        part_ids, part_targets = asked(rows[first : first + 7], first_row=first)
        assert np.array_equal(part_ids, ids[first : first + 7])
        assert np.array_equal(part_targets, targets[first : first + 7])
    again = asked(rows.copy())
    assert np.array_equal(again[0], ids)
    assert np.array_equal(again[1], targets)
    for other in (asked(rows, seed=2), asked(rows, step=3), asked(rows, first_row=64)):
        assert (other[1] != targets).mean() > 0.1


def test_the_chosen_tokens_are_as_many_as_said_and_treated_as_in_bert():
    rows = rows_of(400)
    ids, targets = asked(rows)
    chosen = targets != -100
    assert (chosen.sum(1) == 15).all()
    assert np.array_equal(targets[chosen], rows[:, :-1][chosen])
    assert np.array_equal(ids[~chosen], rows[:, :-1][~chosen])
    masked = ids[chosen] == N_IDS
    changed = ~masked & (ids[chosen] != targets[chosen])
    n = chosen.sum()
    assert masked.mean() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / n))
    share = 0.1 * (1 - 1 / N_IDS)  # a random token may be the same again
    assert changed.mean() == pytest.approx(share, abs=4 * math.sqrt(share / n))
    # Every place is chosen alike, and every id replaces.
    assert chosen.mean(0).max() < 0.15 + 5 * math.sqrt(0.15 / 400)
    assert chosen.mean(0).min() > 0.15 - 5 * math.sqrt(0.15 / 400)
    assert set(range(N_IDS)) == set(ids[chosen][changed].tolist())


def test_what_is_asked_is_fixed():
    """Finished trials were asked this: a change of it bumps the objective's REVISION."""
    ids, targets = asked(rows_of())
    digest = hashlib.sha256(ids.astype("<i8").tobytes() + targets.astype("<i8").tobytes()).hexdigest()
    assert (Denoise.REVISION, digest[:16]) == (1, "9c137c0c4a9e849c")


@pytest.mark.parametrize(
    ("rate", "n_tokens", "wanted"), [(0.01, 10, 1), (0.5, 10, 5), (0.99, 10, 10), (0.25, 3, 1)]
)
def test_at_least_one_token_of_a_row_is_chosen(rate, n_tokens, wanted):
    _, targets = asked(rows_of(5, n_tokens + 1), mask_rate=rate)
    assert ((targets != -100).sum(1) == wanted).all()
    assert Denoise(kind="denoise", mask_rate=rate).n_targets(n_tokens) == wanted


def test_shares_of_nothing_and_all():
    rows = rows_of()
    ids, targets = asked(rows, mask_share=1, random_share=0)
    assert ((ids == N_IDS) == (targets != -100)).all()
    ids, targets = asked(rows, mask_share=0, random_share=0)
    assert np.array_equal(ids, rows[:, :-1])


def test_the_answer_does_not_leak(prepared):
    """Another token under the mask (or under a random replacement) changes the target and no logit."""
    data, cache = prepared
    trial = denoising(data, cache, model={"init": {"std": 0.3}})
    model = trial.train.objective.build(trial.model, 0)
    rows = cache.rows("train", SEQ_LEN, range(8))
    keys = {"seed": 1, "step": 0, "n_ids": cache.vocab_size}
    ids, targets = trial.train.objective.examples(rows, **keys)
    hidden = (targets != -100) & (ids != rows[:, :-1])
    assert hidden.sum() > 20
    other = rows.copy()
    other[:, :-1][hidden] = (other[:, :-1][hidden] + 1) % 256
    other_ids, other_targets = trial.train.objective.examples(other, **keys)
    assert np.array_equal(other_ids, ids)
    assert (other_targets[hidden] != targets[hidden]).all()
    with torch.no_grad():
        logits, others = (model(torch.from_numpy(x)) for x in (ids, other_ids))
        seen = model(torch.from_numpy(rows[:, :-1]))
    assert torch.equal(logits, others)
    assert (logits - seen)[torch.from_numpy(hidden)].abs().max() > 1e-2


# ---- trials


@pytest.mark.parametrize("kind", MIXERS)
def test_killed_and_resumed(prepared, store, kind):
    data, cache = prepared
    trial = denoising(
        data, cache, steps=10, mixer=MIXERS[kind], checkpoint={"every_steps": 4, "every_seconds": None}
    )
    killed, whole = store.trial(trial.id), store.trial("whole")
    assert run_child(die_before_step, trial, store.root, cache, 7) == -signal.SIGKILL
    assert killed.status().state == RUNNING
    assert loop.run(trial, killed, cache).state == FINISHED
    assert killed.provenance(2)["resumed_step"] == 4
    loop.run(trial, whole, cache)
    assert_equal_ends(killed, whole)


def test_micro_batches_change_the_losses_by_rounding_only(prepared, store):
    data, cache = prepared
    found = []
    for micro in (4, 2, 1):
        trial = denoising(data, cache, steps=8, micro_batch_size=micro)
        loop.run(trial, store.trial(f"micro-{micro}"), cache)
        found.append([loss for _, loss in losses(store.trial(f"micro-{micro}"))])
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=5e-6)


def test_compiled_training_has_the_same_losses(prepared, store, monkeypatch):
    data, cache = prepared
    # The eager backend traces as the real one does, without its minute of code generation.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    found = []
    for name in ("plain", "compiled"):
        loop.run(denoising(data, cache, steps=3, compile=name == "compiled"), store.trial(name), cache)
        found.append([loss for _, loss in losses(store.trial(name))])
    assert found[1] == pytest.approx(found[0], abs=5e-6)


def test_a_trained_bert_is_exported_and_reloads(prepared, store, tmp_path):
    transformers = pytest.importorskip("transformers")
    data, cache = prepared
    sizes = {"n_layers": 2, "vocab_size": cache.vocab_size + 1, "max_seq_len": SEQ_LEN}
    trial = denoising(data, cache, steps=3, model={**PRESETS["bert-tiny"], **sizes})
    record = store.trial(trial.id)
    record.write_spec(trial.model_dump(mode="json"))
    loop.run(trial, record, cache)
    trained = load_trained(store.root)
    theirs = transformers.AutoModel.from_pretrained(
        export(store.root, tmp_path / "hf"), add_pooling_layer=False
    )
    assert type(theirs).__name__ == "BertModel"
    ids = torch.from_numpy(cache.rows("train", SEQ_LEN, range(2))[:, :-1])
    with torch.no_grad():
        want = trained.model.encoder.hidden(ids)
        torch.testing.assert_close(theirs(ids).last_hidden_state, want, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no causal language model \\(objective denoise\\)"):
        generate(store.root, "the cat", tokens=4)


def test_bf16_is_near_fp32(prepared, store):
    losses = []
    for precision in ("fp32", "bf16"):
        trial = denoising(*prepared, steps=20, precision=precision, evaluate={"times": 4, "val_tokens": 1024})
        report = Reports()
        loop.run(trial, store.trial(trial.id), prepared[1], report=report)
        losses.append([row["val_loss"] for row in report.rows])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
    assert losses[1][-1] < losses[1][0] - 0.2


@pytest.mark.slow
def test_it_learns(prepared, store):
    """Far below the entropy of single characters: only the text around a hidden one can tell as much."""
    data, cache = prepared
    evaluate = {"times": 3, "val_tokens": 4096, "final_val_tokens": 4096}
    optimizer = {"kind": "adamw", "lr": 1e-2}
    trial = denoising(data, cache, steps=300, batch_size=16, optimizer=optimizer, evaluate=evaluate)
    report = Reports()
    loop.run(trial, store.trial(trial.id), cache, report=report)
    counts = np.bincount(cache.tokens("train"))
    shares = counts[counts > 0] / counts.sum()
    characters = -(shares * np.log(shares)).sum()
    first, second, last = (row["val_loss"] for row in report.rows)
    assert last < second < first
    assert last < characters - 0.7


def test_what_is_measured(prepared, store):
    data, cache = prepared
    lengths = {"lengths": (16, 32), "batch_sizes": (2,)}
    trial = denoising(data, cache, steps=4, evaluate=lengths, objective={**DENOISE, "mask_rate": 0.3})
    record, report = store.trial(trial.id), Reports()
    final = loop.run(trial, record, cache, report=report).final
    for row in report.rows:
        assert row["val_loss"] > 0
        assert row["val_perplexity"] is row["val_bits_per_byte"] is None
    assert final["state_bytes_per_token"] == 0
    assert final["val_loss_at_16"] > 0
    assert final["tokens_per_second_at_32"] > 0
    assert final["tokens_per_second_batch_2"] > 0
    per_token = Engine(trial, cache).flops_per_token
    head = 3 * 2 * 32 * (cache.vocab_size + 1) * 10 / SEQ_LEN
    assert per_token == pytest.approx(3 * flops_per_token(trial.model, SEQ_LEN) + head)
    assert final["flops"] == per_token * 4 * 4 * SEQ_LEN
    test = read_test_split(trial, record, cache)
    assert test["test_loss"] > 0
    assert test["test_perplexity"] is test["test_bits_per_byte"] is None
    assert not set(test) - set(METRICS) - {"n_tokens"}


def test_validation_loss_by_hand_whatever_the_batch_size(prepared, store):
    data, cache = prepared
    trial = denoising(data, cache, steps=3)
    outcome = loop.run(trial, store.trial(trial.id), cache)
    model = load_model(trial, newest_checkpoint(store.trial(trial.id))[1])
    assert isinstance(model, MaskedLM)
    objective = trial.train.objective
    n = trial.evaluate.final_val_tokens // SEQ_LEN
    rows = cache.rows("validation", SEQ_LEN, range(n))
    ids, targets = objective.examples(rows, seed=lm.EXAMPLES_SEED, step=0, n_ids=cache.vocab_size)
    logp = model(torch.from_numpy(ids)).double().log_softmax(-1).detach().numpy()
    places = np.argwhere(targets != -100)
    by_hand = -np.mean([logp[b, t, targets[b, t]] for b, t in places])
    assert len(places) == n * objective.n_targets(SEQ_LEN)
    assert outcome.final["val_loss"] == pytest.approx(by_hand, abs=1e-6)
    for batch_size in (1, 3, 8):
        again = lm.score(model, cache, "validation", SEQ_LEN, n * SEQ_LEN, batch_size, objective=objective)
        assert again.loss == pytest.approx(by_hand, abs=1e-6)
        assert again.n_tokens == len(places)


def test_what_does_not_go_together_is_refused(prepared, store):
    data, cache = prepared
    with pytest.raises(ValueError, match="cannot be given a language-model loss"):
        Engine(denoising(data, cache, objective={"kind": "next_token"}), cache)
    with pytest.raises(ValueError, match=r"objective denoise trains encoders.*model\.causal"):
        Engine(denoising(data, cache, model={"causal": True}), cache)
    with pytest.raises(ValueError, match=r"model\.vocab_size=257 is below 258.*objective denoise; raise it"):
        Engine(denoising(data, cache, model={"vocab_size": cache.vocab_size}), cache)
    for evaluate in ({"recall": True}, {"samples": {"n": 2, "tokens": 8}}):
        trial = denoising(data, cache, steps=1, evaluate=evaluate)
        with pytest.raises(ValueError, match="no next-token head"):
            loop.run(trial, store.trial(trial.id), cache)
    with pytest.raises(ValueError, match="no next-token head"):
        lm.score(Engine(denoising(data, cache), cache).model, cache, "validation", SEQ_LEN)
