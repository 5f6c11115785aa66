"""Flame graphs: no cost is lost, boxes stand inside their parents and beside each other, and the picture is XML."""

from __future__ import annotations

import itertools
from collections import defaultdict
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.bench.flame import boxes, folded, merged, svg, tree

NAMES = st.text("ab;<&\" ':", min_size=1, max_size=4)
STACKS = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=5).map(tuple), st.floats(0, 1e6), min_size=1, max_size=20
)


@settings(deadline=None, derandomize=True)
@given(stacks=STACKS, width=st.floats(1, 5000))
def test_boxes_add_up_and_stand_inside_their_parents(stacks, width):
    root = tree(stacks)
    assert root.total == pytest.approx(sum(stacks.values()))
    placed = list(boxes(root, width))
    assert placed[0].frame is root
    assert placed[0].width == pytest.approx(width if root.total else 0.0)
    room = 1e-6 * width
    children = defaultdict(list)
    for box in placed[1:]:
        assert box.depth == box.parent.depth + 1
        assert box.x >= box.parent.x - room
        assert box.x + box.width <= box.parent.x + box.parent.width + room
        children[id(box.parent)].append(box)
    for box in placed:
        mine = sorted(children[id(box)], key=lambda b: (b.x, b.x + b.width))
        assert all(a.x + a.width <= b.x + room for a, b in itertools.pairwise(mine))
        if root.total:
            own = box.frame.own * placed[0].width / root.total
            assert own + sum(b.width for b in mine) == pytest.approx(box.width, abs=room)


@settings(deadline=None, derandomize=True)
@given(stacks=STACKS)
def test_folded_stacks_read_back(stacks):
    read = merged(
        (tuple(path.split(";")), float(cost))
        for path, cost in (line.rsplit(" ", 1) for line in folded(stacks).splitlines())
    )
    wanted = merged((tuple(n.replace(";", ":") for n in names), round(c)) for names, c in stacks.items())
    assert read == {names: cost for names, cost in wanted.items() if cost}


@settings(deadline=None, derandomize=True)
@given(stacks=STACKS)
def test_the_picture_is_whole(stacks):
    picture = ElementTree.fromstring(svg(tree(stacks), 'a <title> & "more"'))
    height = float(picture.get("height"))
    rects = list(picture.iter("{http://www.w3.org/2000/svg}rect"))[1:]
    assert rects or not sum(stacks.values())
    assert all(float(r.get("y")) >= 0 and float(r.get("y")) + float(r.get("height")) <= height for r in rects)
    assert all(float(r.get("x")) + float(r.get("width")) <= 1200 for r in rects)


def test_names_are_shown_where_they_fit():
    picture = svg(tree({("wide",): 99.0, ("narrow",): 1.0}), "t")
    assert ">wide</text>" in picture
    assert ">narrow</text>" not in picture
    assert "<title>narrow: 1 us, 1.0%</title>" in picture


def test_a_negative_cost_is_refused():
    with pytest.raises(ValueError, match="a;b costs -1"):
        tree({("a", "b"): -1.0})
