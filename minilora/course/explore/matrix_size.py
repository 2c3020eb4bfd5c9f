"""Lesson 07, the larger the matrix, the larger the advantage: r(m + n) numbers instead of m·n.

What it replaces: "96 % fewer", which is right for one size and one rank.
How it works: W and its two factors are drawn to scale; below, what the factors store, as a share of
the matrix, for squares of growing side at the chosen rank. The share of a square is 2r / side:
twice the side, half the share.
What it leaves out: whether that rank is enough. See `explore.photo` for that.
"""

from __future__ import annotations

from ... import lowrank
from . import layout, palette, svg
from .widget import Explorer, Slider

SIDES = (10, 32, 100, 256, 512, 1024, 2048, 4096, 8192, 16384)

SQUARES = (64, 256, 1024, 4096, 16384)

BOX = 170


def compute(rows: int, columns: int, rank: int) -> dict:
    """Numbers in the matrix and in its factors; the rank that such a matrix can have at most; the
    same for growing squares.
    """
    used = min(rank, rows, columns)
    return {
        "rows": rows,
        "columns": columns,
        "rank": rank,
        "used": used,
        "of": rows * columns,
        "numbers": lowrank.stored_numbers(rows, columns, used),
        "break even": lowrank.break_even_rank(rows, columns),
        "squares": {
            side: 100 * lowrank.stored_numbers(side, side, rank) / side**2 for side in SQUARES
        },
    }


def _box(wide: float, high: float, name: str, index: int) -> str:
    """A rectangle at least one pixel thin, under its name."""
    wide, high = max(wide, 1.0), max(high, 1.0)
    shape = (
        f'<rect x="2" y="22" width="{wide:.1f}" height="{high:.1f}" fill="{palette.hue(index)}"/>'
    )
    return svg.canvas(
        max(wide + 6, 7.2 * len(name) + 6),
        BOX + 26,
        svg.text(2, 14, name, font_weight="bold"),
        shape,
    )


def render(found: dict) -> tuple[str, str]:
    m, n, r, numbers, of = (
        found["rows"],
        found["columns"],
        found["used"],
        found["numbers"],
        found["of"],
    )
    share = 100 * numbers / of
    cost = (
        f"{100 - share:.1f} % fewer"
        if numbers < of
        else ("just as many" if numbers == of else f"{share - 100:.1f} % more: nothing is saved")
    )
    most = (
        "" if r == found["rank"] else f" (rank {found['rank']} is more than such a matrix can have)"
    )
    label = (
        f"{m:,} × {n:,} at rank {r}{most}: {r} · ({m:,} + {n:,}) = {numbers:,} numbers "
        f"instead of {of:,}, {cost}. "
        f"Factors take fewer numbers below rank {of / (m + n):,.1f}."
    )
    scale = BOX / max(m, n)
    shapes = layout.beside(
        [
            _box(n * scale, m * scale, f"W ({m:,}, {n:,})", 0),
            layout.sign("≈", BOX),
            _box(r * scale, m * scale, f"B ({m:,}, {r})", 1),
            layout.sign("·", BOX),
            _box(n * scale, r * scale, f"A ({r}, {n:,})", 2),
        ]
    )
    squares = svg.bars(
        list(found["squares"].values()),
        [f"{side:,} × {side:,}" for side in SQUARES],
        top=100,
        unit="%",
    )
    return label, layout.below(
        [
            shapes,
            svg.canvas(
                560,
                20,
                svg.text(
                    2, 14, f"stored at rank {found['rank']}, as a share of the square matrix:"
                ),
            ),
            squares,
        ]
    )


EXPLORER = Explorer(
    "matrix-size",
    compute,
    render,
    [
        Slider("rows", SIDES, start=100, label="rows m"),
        Slider("columns", SIDES, start=100, label="columns n"),
        Slider("rank", range(1, 65), start=2, label="rank r"),
    ],
)
