"""Several SVG pictures as one: beside each other, or one below the other.

What it replaces: a table or a flex box of pictures, which a still image for readers without a
kernel cannot hold.
How it works: each picture's outer `<svg>` is taken off, its inside moved by a translation, and one
canvas put round all.
What it leaves out: alignment other than to the top and to the left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from . import svg

OUTER = re.compile(r'<svg[^>]*viewBox="0 0 (\d+) (\d+)"[^>]*>(.*)</svg>', re.DOTALL)


def _open(picture: str) -> tuple[int, int, str]:
    """Width, height and inside of a picture made by `svg.canvas`."""
    found = OUTER.fullmatch(picture)
    if not found:
        raise ValueError("a picture to lay out must be one <svg> made by svg.canvas")
    return int(found[1]), int(found[2]), found[3]


def beside(pictures: Sequence[str], gap: int = 18) -> str:
    """One picture with all of `pictures` in a row."""
    x, height, parts = 0, 0, []
    for width, tall, inside in map(_open, pictures):
        parts.append(f'<g transform="translate({x},0)">{inside}</g>')
        x, height = x + width + gap, max(height, tall)
    return svg.canvas(max(x - gap, 1), height, *parts)


def below(pictures: Sequence[str], gap: int = 10) -> str:
    """One picture with all of `pictures` in a column."""
    y, width, parts = 0, 0, []
    for wide, height, inside in map(_open, pictures):
        parts.append(f'<g transform="translate(0,{y})">{inside}</g>')
        y, width = y + height + gap, max(width, wide)
    return svg.canvas(width, max(y - gap, 1), *parts)


def sign(words: str, height: int, width: int = 22) -> str:
    """A word or sign, such as ×, in the middle of a box of `height`, to stand between two
    pictures.
    """
    return svg.canvas(
        width, height, svg.text(width / 2, height / 2 + 6, words, "middle", font_size="18px")
    )
