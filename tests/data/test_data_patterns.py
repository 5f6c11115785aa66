"""Patterns: sequences follow their rule, rules are in one split, wrong numbers make no sequence."""

from itertools import pairwise

import numpy as np
import pytest
from examples_kit import CASES, config_of, many

from fabric.data import DataConfig
from fabric.data.corpus import SPLITS
from fabric.data.examples.base import PADDING, UNASKED
from fabric.data.examples.sequences import _INVERSE, FAMILIES, Interleaved, Periodic, corrupted
from fabric.data.examples.symbols import FIRST_NUMBER, INVALID, PRIME

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
