import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from train_kit import SEQ_LEN, make_trial

import models
from fabric.evaluate.lm import score


@pytest.fixture(scope="module")
def model(prepared):
    return models.build(make_trial(*prepared).model, 5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_score_does_not_depend_on_batch_size(prepared, model, precision):
    scores = [score(model, prepared[1], "validation", SEQ_LEN, None, b, precision) for b in (1, 3, 8)]
    assert len({(s.n_tokens, s.n_bytes) for s in scores}) == 1
    for other in scores[1:]:
        assert other.loss == pytest.approx(scores[0].loss, abs=1e-6)
        assert other.bits_per_byte == pytest.approx(scores[0].bits_per_byte, abs=1e-6)


def test_score_by_hand(prepared, model):
    cache = prepared[1]
    rows = torch.from_numpy(cache.rows("validation", SEQ_LEN, [0, 1, 2]))
    logits = model(rows[:, :-1]).logits.double()
    want = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    got = score(model, cache, "validation", SEQ_LEN, max_tokens=3 * SEQ_LEN + 5)
    n_bytes = int(np.asarray(cache.token_bytes)[rows[:, 1:].numpy()].sum())
    assert (got.n_tokens, got.n_bytes) == (3 * SEQ_LEN, n_bytes)
    assert got.loss == pytest.approx(want.item(), abs=1e-6)
    assert got.perplexity == pytest.approx(math.exp(want.item()), rel=1e-5)
    assert got.bits_per_byte == pytest.approx(want.item() * 3 * SEQ_LEN / math.log(2) / n_bytes, rel=1e-6)


def test_score_leaves_the_model_as_it_was(prepared, model):
    model.train()
    score(model, prepared[1], "test", SEQ_LEN, 32)
    assert model.training
    assert all(not p.is_inference() for p in model.parameters())


def test_a_split_without_a_window_is_an_error(prepared, model):
    with pytest.raises(ValueError, match="validation split holds no window of 99999 tokens"):
        score(model, prepared[1], "validation", 99999)
