"""Recall, minimal pairs and diversity against models and texts whose figures are known."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fabric.evaluate.config import SamplesConfig
from fabric.evaluate.lm import evaluating
from fabric.evaluate.minimal_pairs import paradigm_accuracy, read_pairs
from fabric.evaluate.recall import recall
from fabric.evaluate.samples import diversity, draw, ngrams
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task

SEQ_LEN = 32


class Stub:
    """What evaluation needs of a model: `hidden` (here the logits themselves), an identity head, a config."""

    def __init__(self, vocab_size: int, max_seq_len: int = 128) -> None:
        self.lm_head_weight = torch.eye(vocab_size)
        self.config = SimpleNamespace(max_seq_len=max_seq_len)


class Copier(Stub):
    """Finds the latest earlier place where the last `context` tokens stood, and says what followed it."""

    def __init__(self, vocab_size: int, period: int) -> None:
        super().__init__(vocab_size)
        self.period = period

    def hidden(self, ids_BT):
        copied_BT = torch.zeros_like(ids_BT)
        copied_BT[:, self.period - 1 :] = ids_BT[:, : ids_BT.shape[1] - self.period + 1]
        return 50.0 * F.one_hot(copied_BT, self.lm_head_weight.shape[0]).float()


class Unigram(Stub):
    """The same distribution everywhere, whatever came before: there is nothing to remember."""

    def __init__(self, counts) -> None:
        super().__init__(len(counts))
        self.logits_V = torch.log(torch.as_tensor(counts, dtype=torch.float32) + 1.0)

    def eval(self):
        return self

    def hidden(self, ids_BT, cache=None, shared=None):
        return self.logits_V.expand(*ids_BT.shape, -1)

    def new_cache(self, batch_size, capacity):
        return SimpleNamespace(layers=[], n_tokens=0)


def test_a_copying_oracle_recalls_everything(cache):
    found = recall(Copier(cache.vocab_size, SEQ_LEN // 2), cache, SEQ_LEN)
    assert found.accuracy == 1.0
    assert found.gain > 10


def test_a_copier_with_the_wrong_offset_does_not(cache):
    found = recall(Copier(cache.vocab_size, SEQ_LEN // 2 + 1), cache, SEQ_LEN)
    assert found.accuracy < 0.3


def test_a_unigram_model_gains_nothing(cache):
    counts = np.bincount(cache.tokens("train"), minlength=cache.vocab_size)
    found = recall(Unigram(counts), cache, SEQ_LEN)
    assert abs(found.gain) < 1e-6
    # It always names the commonest token, so its accuracy is that token's share of what is asked.
    assert 0 < found.accuracy < 0.4


def test_recall_is_what_two_separate_computations_say(cache, model):
    """The loss and the guesses from the full logits, window by window."""
    half = SEQ_LEN // 2
    with evaluating(model):
        found = recall(model, cache, SEQ_LEN, batch_size=4)
        n_rows = cache.n_rows("validation", half)
        chosen = np.sort(np.random.default_rng(20_240_607).permutation(n_rows)[:32])
        gains, hits = [], []
        for row in cache.rows("validation", half, chosen)[:, :half]:
            ids = torch.from_numpy(np.concatenate([row, row]))
            logits = model(ids[None]).logits[0].double()
            nll = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
            gains.append(nll[: half - 1].mean() - nll[half:].mean())
            hits.append((logits[half:-1].argmax(-1) == ids[half + 1 :]).double().mean())
    assert found.gain == pytest.approx(float(torch.stack(gains).mean()), abs=1e-5)
    assert found.accuracy == pytest.approx(float(torch.stack(hits).mean()), abs=1e-9)


def test_recall_in_chunks_is_recall(cache, model, monkeypatch):
    with evaluating(model):
        whole = recall(model, cache, SEQ_LEN)
        monkeypatch.setattr("fabric.evaluate.recall.WHOLE_LOGITS", 7 * cache.vocab_size)
        chunked = recall(model, cache, SEQ_LEN)
    assert chunked == pytest.approx(whole, abs=1e-6)


def test_recall_of_too_short_windows_is_none(cache, model):
    assert recall(model, cache, 3) is None
    assert recall(model, cache, 2 * cache.n_tokens("validation")) is None


def write_rows(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows))
    return path


def pair(good: str, bad: str) -> dict:
    return {"sentence_good": good, "sentence_bad": bad}


def test_pairs_are_scored_by_their_likelihood(cache, tmp_path):
    """Under the text's own letter frequencies common letters beat rare ones, whichever is called good."""
    counts = np.bincount(cache.tokens("train"), minlength=cache.vocab_size)
    write_rows(tmp_path / "p" / "right.jsonl", [pair("aaaa", "zzzz"), pair("aa", "zq"), pair("a a", "zzz")])
    write_rows(tmp_path / "p" / "half.jsonl", [pair("zzzz", "aaaa"), pair("aaaa", "zzzz")])
    found = paradigm_accuracy(Unigram(counts), cache.tokenizer(), tmp_path / "p")
    assert found == {"half": 0.5, "right": 1.0}


def test_a_tie_is_wrong(cache, model, tmp_path):
    file = write_rows(tmp_path / "tie.jsonl", [pair("the cat", "the cat")])
    with evaluating(model):
        assert paradigm_accuracy(model, cache.tokenizer(), file) == {"tie": 0.0}


def test_sentences_longer_than_the_model_give_none(cache, tmp_path):
    short = Unigram(np.ones(cache.vocab_size))
    short.config.max_seq_len = 8
    file = write_rows(tmp_path / "x.jsonl", [pair("12345678", "1234567")])
    assert paradigm_accuracy(short, cache.tokenizer(), file) is not None
    write_rows(file, [pair("123456789", "1234567")])
    assert paradigm_accuracy(short, cache.tokenizer(), file) is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "not JSON"),
        ('"text"', "a row is a JSON object, not str"),
        ("[1, 2]", "not list"),
        ('{"sentence_good": "a"}', r"no field 'sentence_bad' \(there are: sentence_good\)"),
        ('{"sentence_good": "a", "sentence_bad": null}', "sentence_bad = None is no text"),
        ('{"sentence_good": "a", "sentence_bad": ""}', "option 1 is empty"),
    ],
)
def test_malformed_rows_name_file_and_line(tmp_path, row, words):
    write_rows(tmp_path / "p" / "bad.jsonl", [pair("a", "b"), "", row])
    with pytest.raises(ValueError, match=rf"bad\.jsonl:3: .*{words}"):
        read_pairs(tmp_path / "p")


def test_bad_utf8_and_missing_files(tmp_path):
    (tmp_path / "p").mkdir()
    with pytest.raises(ValueError, match=r"no \.jsonl file"):
        read_pairs(tmp_path / "p")
    with pytest.raises(ValueError, match=r"no \.jsonl file"):
        read_pairs(tmp_path / "absent.jsonl")
    (tmp_path / "p" / "x.jsonl").write_bytes(b"\n")
    with pytest.raises(ValueError, match="holds no rows"):
        read_pairs(tmp_path / "p")
    (tmp_path / "p" / "x.jsonl").write_bytes(b'{"sentence_good": "\xff", "sentence_bad": "b"}')
    with pytest.raises(ValueError, match=r"x\.jsonl is not UTF-8 at byte 19"):
        read_pairs(tmp_path / "p")


def test_a_line_separator_inside_a_sentence_ends_no_row(tmp_path):
    file = write_rows(tmp_path / "x.jsonl", [pair("a\u2028b", "b\u2028a")])
    _, (item,) = read_pairs(file)
    assert (item.group, item.options) == ("x", ("a\u2028b", "b\u2028a"))


def test_shares_are_those_of_the_task(cache, model, tmp_path):
    """Where every file is a paradigm, and no two sentences are equally likely."""
    words = ["the cat", "cat the", "a dog ran", "ran a dog", "home", "mat on", "on a mat", "her"]
    for name in ("one", "two", "three"):
        good = words[len(name) :] + words[: len(name)]
        rows = [{**pair(g, b), "UID": name} for g, b in zip(good, words, strict=True)]
        write_rows(tmp_path / "blimp" / f"{name}.jsonl", rows)
    with evaluating(model):
        found = paradigm_accuracy(model, cache.tokenizer(), tmp_path / "blimp")
        again = paradigm_accuracy(model, cache.tokenizer(), tmp_path / "blimp", batch_size=3)
        trained = SimpleNamespace(
            config=model.config, model=model, tokenizer=cache.tokenizer(), hf_tokenizer=None
        )
        subject, blimp = Subject.of(trained), task("blimp")
        outcomes = blimp.run(blimp.prepare(blimp.load(Asked(tmp_path)), subject), subject).outcomes
    assert found == again
    assert list(found) == ["one", "three", "two"]
    assert 0 < sum(found.values()) / 3 < 1
    assert sum(found.values()) / 3 == pytest.approx(blimp.scores(outcomes)["accuracy"].value)


@pytest.mark.skipif("FABRIC_DATA" not in os.environ, reason="FABRIC_DATA names no folder with blimp/")
def test_blimp_is_read_and_scored(cache, model):
    folder = Path(os.environ["FABRIC_DATA"]) / "blimp"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    _, items = read_pairs(folder)
    paradigms = {item.group for item in items}
    assert len(paradigms) == 67
    name = min(paradigms)
    with evaluating(model):
        share = paradigm_accuracy(model, cache.tokenizer(), folder / f"{name}.jsonl")
    assert 0.2 < share[name] < 0.8  # an untrained model guesses


def test_ngrams_and_diversity_by_hand():
    assert ngrams([1, 2, 3], 2) == [(1, 2), (2, 3)]
    found = diversity([[1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6]])
    assert found["distinct_1"] == pytest.approx(6 / 12)
    assert found["distinct_2"] == pytest.approx((1 + 5) / 10)
    assert found["repetition_4"] == pytest.approx((2 / 3 + 0) / 2)
    assert diversity([[1, 2, 3]])["repetition_4"] is None
    assert diversity([]) == {"distinct_1": None, "distinct_2": None, "repetition_4": None}


def test_samples_are_drawn_by_their_seed_alone(cache, model):
    config = SamplesConfig(n=3, tokens=10)
    with evaluating(model):
        first = draw(model, cache.tokenizer(), config, seed=1)
        torch.manual_seed(99)
        again = draw(model, cache.tokenizer(), config, seed=1)
        other = draw(model, cache.tokenizer(), config, seed=2)
    assert first == again != other
    assert [len(s) for s in first] == [10, 10, 10]


def test_samples_that_do_not_fit_are_none(cache, model):
    fits = SamplesConfig(n=1, tokens=model.config.max_seq_len - 1)
    with evaluating(model):
        assert len(draw(model, cache.tokenizer(), fits, seed=0)[0]) == fits.tokens
        assert draw(model, cache.tokenizer(), fits.model_copy(update={"tokens": fits.tokens + 1}), 0) == []
