"""Samples: drawn by the seed, kept as texts, scored by `samples.diversity` and the model itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fabric.data.rows import TaskDataError
from fabric.data.tokenizer import ByteTokenizer
from fabric.evaluate.samples import diversity
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task


def test_samples(model):
    tokenizer = ByteTokenizer()
    trained = SimpleNamespace(
        model=model.eval(), config=model.config, tokenizer=tokenizer, prompt_ids=tokenizer.encode
    )
    subject = Subject(trained, 256)
    asked = task("samples:n=6,tokens=20,temperature=0.8,prompt=the cat")

    def ran(seed: int) -> list:
        return list(asked.run(asked.prepare(asked.load(Asked(seed=seed)), subject), subject).outcomes)

    outcomes = ran(1)
    assert outcomes == ran(1) != ran(2)
    ids = [o["ids"] for o in outcomes]
    assert all(o["text"] == tokenizer.decode(o["ids"]) for o in outcomes)
    scores = asked.scores(outcomes)
    for name, value in diversity(ids).items():
        assert scores[name].value == pytest.approx(value)
    nats = 0.0
    for new in ids:
        whole = torch.tensor([[*tokenizer.encode("the cat"), *new]])
        with torch.no_grad():
            logits_TV = (model.hidden(whole)[0] @ model.lm_head_weight.T).log_softmax(-1)
        nats -= float(logits_TV[6:-1].gather(1, torch.tensor(new)[:, None]).sum())
    assert scores["self_perplexity"].value == pytest.approx(
        float(torch.tensor(nats / sum(map(len, ids))).exp()), rel=1e-4
    )
    with pytest.raises(TaskDataError, match="set tokens lower"):
        task("samples:tokens=200").prepare([Asked()], subject)
    with pytest.raises(ValueError, match="temperature"):
        task("samples:temperature=0")
