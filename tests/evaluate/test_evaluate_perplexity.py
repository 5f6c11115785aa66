"""How likely a text is: windows that score every token once, and numbers that others find too."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data.tokenizer import ByteTokenizer
from fabric.evaluate.perplexity import rolling
from fabric.evaluate.rows import TaskDataError
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task
from models import ModelConfig, build

TEXT = "It was the best of times, it was the worst of times;\nit was the age of wisdom — " * 5
REAL = os.environ.get("FABRIC_DATA")


def subject_of(model, tokenizer) -> Subject:
    found = SimpleNamespace(
        model=model,
        config=model.config,
        tokenizer=tokenizer,
        hf_tokenizer=None,
        prompt_ids=tokenizer.encode,
    )
    return Subject.of(found)


@pytest.fixture(scope="module")
def subject() -> Subject:
    body = {"vocab_size": 257, "d_model": 32, "n_layers": 2, "max_seq_len": 64, "init": {"std": 0.3}}
    parts = {"mixer": {"kind": "mha", "n_heads": 4}, "ffn": {"kind": "swiglu", "d_ff": 48}}
    return subject_of(build(ModelConfig.model_validate({**body, **parts})).eval(), ByteTokenizer())


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def scored(text: str, subject: Subject, folder: Path | None = None, limit: int | None = None, **how):
    chosen = task(text)
    ran = chosen.run(chosen.prepare(chosen.load(Asked(folder, limit)), subject), subject, **how)
    return chosen.scores(ran.outcomes), ran


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.integers(1, 70), st.integers(2, 20), st.integers(1, 20))
def test_every_token_is_scored_once_as_the_harness_does(n, length, stride):
    lm_eval = pytest.importorskip("lm_eval.utils")
    ids, stride = list(range(1, n + 1)), min(stride, length)
    windows = list(rolling(ids, 0, length, stride))
    assert [i for w in windows for i in w.ids[len(w.ids) - w.n_scored :].tolist()] == ids
    assert all(len(w.ids) <= length + 1 for w in windows)
    theirs = lm_eval.get_rolling_token_windows(ids, 0, length, length - stride + 1)
    for ours, (context, continuation) in zip(windows, theirs, strict=True):
        found = ours.ids[:-1].tolist(), ours.ids[1:][-ours.n_scored :].tolist()
        assert found == (context, continuation[-ours.n_scored :])


@pytest.mark.parametrize("stride", [None, 16])
def test_it_is_the_models_own_likelihood(subject, file, stride):
    window = 48
    scores, ran = scored(f"text:path={file},window={window},stride={stride or window}", subject)
    ids = list(TEXT.encode())
    nats = 0.0
    for w in rolling(ids, subject.first_id, window, stride or window):
        with torch.inference_mode():
            log_p_TV = subject.model(torch.from_numpy(w.ids[None, :-1])).logits[0].double().log_softmax(-1)
        nats -= sum(
            float(log_p_TV[t, w.ids[t + 1]]) for t in range(len(w.ids) - 1 - w.n_scored, len(w.ids) - 1)
        )
    n_bytes = len(TEXT.encode())
    expected = {
        "perplexity": math.exp(nats / len(ids)),
        "loss": nats / len(ids),
        "bits_per_byte": nats / math.log(2) / n_bytes,
        "bits_per_character": nats / math.log(2) / len(TEXT),
        "word_perplexity": math.exp(nats / len(re.split(r"\s+", TEXT))),
    }
    assert {k: s.value for k, s in scores.items()} == pytest.approx(expected, rel=1e-5)
    assert ran.remarks == (f"windows of {window} tokens, stride {stride or window}",)
    score = scores["perplexity"]
    assert score.low < score.value < score.high
    assert sum(o["n_bytes"] for o in ran.outcomes) == n_bytes


def test_outcomes_do_not_depend_on_the_batch(subject, file):
    found = [
        [o["nats"] for o in scored(f"text:path={file},window=16", subject, rows=rows)[1].outcomes]
        for rows in (1, 7, 32)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] == pytest.approx(found[2], rel=1e-6)


class Known:
    """A model that gives every byte after `first` the same distribution: of V ids, or of a byte's probability."""

    def __init__(self, log_p_V: torch.Tensor) -> None:
        self.lm_head_weight = log_p_V[:, None]
        self.config = SimpleNamespace(max_seq_len=32)

    def hidden(self, ids_BT):
        return torch.ones(*ids_BT.shape, 1)


class Pairs:
    """Two bytes an id: another tokenizer of the same bytes."""

    eos_id = 0

    def encode(self, text):
        data = text.encode()
        return [data[i] * 256 + data[i + 1] for i in range(0, len(data), 2)]

    def encode_with_ends(self, text):
        ends = ByteTokenizer().encode_with_ends(text)[1]
        return self.encode(text), ends[1::2]


def test_a_uniform_model_s_perplexity_is_its_vocabulary(file):
    scores, _ = scored(f"text:path={file}", subject_of(Known(torch.zeros(257)), ByteTokenizer()))
    assert scores["perplexity"].value == pytest.approx(257)
    assert scores["loss"].value / math.log(2) == pytest.approx(math.log2(257))


def test_bits_per_byte_do_not_depend_on_the_tokenizer(tmp_path):
    even = TEXT if len(TEXT.encode()) % 2 == 0 else TEXT + "."
    (tmp_path / "even.txt").write_text(even)
    log_p_V = torch.randn(256, generator=torch.Generator().manual_seed(0)).log_softmax(0)
    by_byte = Known(torch.cat([log_p_V, torch.full((1,), -1e9)]))
    by_pair = Known((log_p_V[:, None] + log_p_V).flatten())
    name = f"text:path={tmp_path / 'even.txt'}"
    one, two = (
        scored(name, subject_of(model, tokenizer))[0]
        for model, tokenizer in ((by_byte, ByteTokenizer()), (by_pair, Pairs()))
    )
    for metric in ("bits_per_byte", "bits_per_character", "word_perplexity"):
        assert one[metric].value == pytest.approx(two[metric].value, rel=1e-5), metric
    assert two["perplexity"].value == pytest.approx(one["perplexity"].value ** 2, rel=1e-4)


def test_mistakes_are_told(subject, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for text, said in {
        "text": "name it, text:path=FILE",
        f"text:path={tmp_path / 'none.txt'}": "none.txt cannot be read: No such file",
        f"text:path={tmp_path / 'empty.txt'}": "is empty",
        f"text:path={tmp_path / 'latin.txt'}": "latin.txt is not UTF-8 at byte 3",
        "wikitext2": "its data is not here",
    }.items():
        with pytest.raises(TaskDataError, match=said):
            task(text).load(Asked(tmp_path))
    with pytest.raises(ValueError, match="stride=9 is more than window=8: tokens would be left out"):
        task("text:window=8,stride=9")
    with pytest.raises(ValueError, match="it has a text of its own"):
        task("wikitext2:path=a.txt")


@pytest.mark.skipif(REAL is None, reason="no FABRIC_DATA")
def test_a_limit_takes_the_first_windows_of_real_text(subject):
    scores, ran = scored("wikitext2:window=64", subject, Path(str(REAL)), limit=5)
    assert len(ran.outcomes) == scores["perplexity"].n == 5
