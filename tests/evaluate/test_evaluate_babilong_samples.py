"""BABILong: composition by its properties, the leaderboard's scorer by its vectors, damaged stories."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.data.rows import TaskDataError
from fabric.evaluate.babilong import SHORTEST, chance, compose, is_correct, questions, sentences

AROUND = (
    " = Ships = \n \n The ship sailed on . It was never seen again , they said .\n \n = = Crew = = \n"
    " No one spoke of it !"
)


# ---- composition

SENTENCES = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=25), min_size=1, max_size=20).filter(
    lambda found: any(len(s) >= SHORTEST for s in found)
)
# No fact's ids are the background's, so a fact that is found is a fact.
FACTS = st.lists(st.lists(st.integers(100, 199), min_size=1, max_size=9), max_size=8)


@given(FACTS, SENTENCES, st.integers(0, 300), st.integers())
def test_composition(facts, around, more, seed):
    n_tokens = sum(map(len, facts)) + more
    pieces = compose(facts, around, n_tokens, random.Random(seed))
    assert [list(p.ids) for p in pieces if p.is_fact] == facts  # every one, whole, in order
    assert pieces == compose(facts, around, n_tokens, random.Random(seed))
    rest = [list(p.ids) for p in pieces if not p.is_fact]
    if not n_tokens:
        assert not rest
        return
    assert sum(len(p.ids) for p in pieces) == n_tokens
    # Without the facts: the background in its order from somewhere on, short sentences left out, the last one cut.
    ring = [s for s in around if len(s) >= SHORTEST]
    assert not rest or any(
        all(r == ring[(at + i) % len(ring)] for i, r in enumerate(rest[:-1]))
        and rest[-1] == ring[(at + len(rest) - 1) % len(ring)][: len(rest[-1])]
        for at in range(len(ring))
    )


def test_slots_are_drawn_with_replacement_and_reach_both_ends():
    around = [[i] * SHORTEST for i in range(3)]
    seen = set()
    for seed in range(300):
        pieces = compose([[100], [101]], around, 2 + 3 * SHORTEST, random.Random(seed))
        seen.add("".join("f" if p.is_fact else "s" for p in pieces))
    assert len(seen) == 10  # all ways to put 2 facts in order into 4 slots
    assert {"ffsss", "sssff", "fsssf"} <= seen


def test_facts_that_do_not_fit_and_a_background_that_is_too_short():
    with pytest.raises(ValueError, match=r"facts are 5 tokens, its context may have 4; .* length=0"):
        compose([[1] * 5], [[1] * SHORTEST], 4, random.Random(0))
    with pytest.raises(ValueError, match="no sentence"):
        compose([[1]], [[1] * (SHORTEST - 1)], 9, random.Random(0))


def test_sentences():
    assert sentences(AROUND) == [
        "The ship sailed on .",
        "It was never seen again , they said .",
        "No one spoke of it !",
    ]
    assert sentences("# PLAY\n\nWho goes\nthere? I.\n") == ["Who goes there?", "I."]


# ---- the scorer


@pytest.mark.parametrize(
    ("qa", "target", "output", "question", "expected"),
    [
        ("qa1", "kitchen", "kitchen. garden before.", "Where is Mary?", True),
        ("qa1", "kitchen", "kitchen or garden", "Where is Mary?", False),
        ("qa4", "bedroom", "the kitchen is south of the bedroom", "What is the kitchen south of?", True),
        ("qa8", "apple,milk", "milk and apple", "What is Mary carrying?", True),
        ("qa8", "milk", "milk and apple", "What is Mary carrying?", False),
        ("qa1", "kitchen", "", "Where is Mary?", False),
        ("qa1", "kitchen", "KITCHEN", "Where is Mary?", True),
        ("qa1", "kitchen", "kitchen<context>garden", "Where is Mary?", True),
        ("qa1", "kitchen", "kitchen\n<example>\ngarden", "Where is Mary?", True),
        ("qa1", "kitchen", "kitchen Question: is it the garden", "Where is Mary?", False),  # never cut there
        ("qa5", "Fred", "Fred gave it to Jeff", "Who gave the milk to Jeff?", True),
        # Known defects, kept.
        ("qa7", "none", "none", "How many objects is Mary carrying?", False),
        ("qa6", "no", "I do not know", "Is Mary in the kitchen?", True),
        ("qa10", "maybe", "I cannot know, maybe", "Is Mary in the kitchen?", False),
        ("qa1", "kitchen", "kitchen", "Is the kitchen where Mary is?", False),
    ],
)
def test_scorer_vectors(qa, target, output, question, expected):
    assert is_correct(qa, target, output, question) is expected


def test_chance():
    assert chance("qa1", "kitchen", "Where is Mary?") == 1 / 6
    assert chance("qa4", "bedroom", "What is the kitchen south of?") == 1 / 5
    assert chance("qa5", "Fred", "Who gave the milk to Jeff?") == 1 / 5
    assert chance("qa1", "kitchen", "Is the kitchen where Mary is?") == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("John is here.\n", r":1: 'John is here.' begins with 'John' where number 1 and a text"),
        ("1 A b.\n3 C d.\n", r":2: .* begins with '3' where number 1 or 2"),
        ("1 A b.\n2 Where?\tgarden\t1\tmore\n", r":2: 4 columns where a question has 3"),
        ("1 Where?\tgarden\t1\n", r":1: the question 'Where\?' has no facts before it"),
        ("1 A b.\n2 Where?\tshed\t1\n", r":2: the answer 'shed' is no label of qa1; allowed: bathroom, .*"),
        ("1 A b.\n", "holds no questions"),
        ("", "holds no questions"),
    ],
)
def test_damaged_stories(tmp_path, text, says):
    path = tmp_path / "qa1_x_test.txt"
    path.write_text(text)
    with pytest.raises(TaskDataError, match=says):
        questions(path, "qa1")
