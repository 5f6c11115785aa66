"""Flame graphs: stacks of names with a cost each, as one self-contained SVG, and as folded stacks.

The picture and the text format are Brendan Gregg's (https://www.brendangregg.com/flamegraphs.html).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape

ROW, LETTER, MARGIN = 17, 6.7, 10  # pixels: height of a box, width of a letter at size 11, around the picture
TOO_NARROW = 0.2  # pixels; narrower boxes are left out of the picture (not of the sums)

Stacks = Mapping[tuple[str, ...], float]  # outermost name first; the cost of the innermost alone


@dataclass
class Frame:
    """All calls under one name in one place: what they cost by themselves, and what they called."""

    name: str
    own: float = 0.0
    children: dict[str, Frame] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return self.own + sum(child.total for child in self.children.values())


@dataclass(frozen=True)
class Box:
    """A frame's place: `depth` rows above the root's, `x` and `width` in the root's unit."""

    frame: Frame
    parent: Box | None
    depth: int
    x: float
    width: float


def tree(stacks: Stacks, root: str = "all") -> Frame:
    """The frames of all stacks below one root. Raises ValueError for a negative cost."""
    top = Frame(root)
    for names, cost in stacks.items():
        if cost < 0:
            raise ValueError(f"stack {';'.join(names)} costs {cost}; a cost is 0 or more")
        frame = top
        for name in names:
            frame = frame.children.setdefault(name, Frame(name))
        frame.own += cost
    return top


def folded(stacks: Stacks) -> str:
    """A line a stack, `outer;inner cost`, costs rounded to whole numbers; semicolons in names become colons."""
    rows = (
        (";".join(name.replace(";", ":") for name in names), round(cost)) for names, cost in stacks.items()
    )
    return "".join(f"{path} {cost}\n" for path, cost in sorted(rows) if cost)


def boxes(root: Frame, width: float) -> Iterator[Box]:
    """Every frame's box, parents first; the root is `width` wide, children stand side by side from its left edge."""
    total = root.total
    waiting = [Box(root, None, 0, 0.0, width if total else 0.0)]
    while waiting:
        box = waiting.pop()
        yield box
        x = box.x
        for child in box.frame.children.values():
            waiting.append(Box(child, box, box.depth + 1, x, child.total / total * width if total else 0.0))
            x += waiting[-1].width


def svg(root: Frame, title: str, unit: str = "us", width: int = 1200) -> str:
    """The picture: the root at the bottom, a tooltip with cost and share on every box, its name where it fits."""
    placed = [b for b in boxes(root, width - 2 * MARGIN) if b.width >= TOO_NARROW]
    rows = 1 + max((b.depth for b in placed), default=0)
    height = (rows + 2) * ROW + 2 * MARGIN
    drawn = "\n".join(_drawn(b, rows, root.total, unit) for b in placed)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="monospace" font-size="11">\n'
        f'<rect width="100%" height="100%" fill="#fffdf5"/>\n'
        f'<text x="{width / 2:g}" y="{MARGIN + 12}" text-anchor="middle" font-size="14">{escape(title)}</text>\n'
        f"{drawn}\n</svg>\n"
    )


def _drawn(box: Box, rows: int, total: float, unit: str) -> str:
    x, y = MARGIN + box.x, MARGIN + (rows + 1 - box.depth) * ROW
    cost = box.frame.total
    about = escape(f"{box.frame.name}: {cost:,.0f} {unit}, {cost / total:.1%}")
    name, fits = box.frame.name, int((box.width - 4) / LETTER)
    text = ""
    if fits >= 3:
        short = name if len(name) <= fits else name[: fits - 2] + ".."
        text = f'<text x="{x + 2:.2f}" y="{y + 12}">{escape(short)}</text>'
    rect = f'<rect x="{x:.2f}" y="{y}" width="{box.width:.2f}" height="{ROW - 1}" fill="{_colour(name)}" rx="1"/>'
    return f"<g><title>{about}</title>{rect}{text}</g>"


def _colour(name: str) -> str:
    """A warm colour that is the same for a name in every picture."""
    hashed = zlib.crc32(name.encode())
    return f"rgb({205 + hashed % 50},{80 + hashed // 50 % 130},{40 + hashed // 6500 % 50})"


def merged(found: Iterable[tuple[tuple[str, ...], float]]) -> dict[tuple[str, ...], float]:
    """Stacks that occur several times, added up."""
    stacks: dict[tuple[str, ...], float] = {}
    for names, cost in found:
        stacks[names] = stacks.get(names, 0.0) + cost
    return stacks
