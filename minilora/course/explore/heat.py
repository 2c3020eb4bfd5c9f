"""A heat map whose cells carry their numbers, one of them ringed: for tables of runs that a slider
walks through.

What it replaces: two copies of the same drawing, and matplotlib in the slider path.
How it works: a cell for each row and column that `values` has, coloured from dark to light over
`span`, its number on it and, where there is one, a note below the number; what is missing is drawn
as a dash, since a table of runs may have holes.
What it leaves out: more than two dimensions, and colour bars: every cell says its number.
Where numerics differ: numbers are rounded to whole ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import palette, svg


def heat(
    values: dict[tuple, float],
    rows: Sequence,
    columns: dict,
    chosen: tuple | None,
    *,
    title: str,
    notes: dict[tuple, str] | None = None,
    span: tuple[float, float] = (0, 100),
    wide: int = 62,
) -> str:
    """values, notes: by (row, column). columns: column → its heading. chosen: the cell that is
    ringed. Numbers as whole ones.
    """
    notes = notes or {}
    tall, above = 44 if notes else 30, 44
    left = 60 + 7 * max(0, max(len(str(row)) for row in rows) - 5)
    parts = [svg.text(2, 14, title, font_weight="bold")]
    parts += [
        svg.text(left + i * wide + wide / 2, above - 8, heading, "middle")
        for i, heading in enumerate(columns.values())
    ]
    for i, row in enumerate(rows):
        y = above + i * tall
        parts.append(svg.text(left - 8, y + tall / 2 + 5, row, "end"))
        for j, column in enumerate(columns):
            x, key = left + j * wide, (row, column)
            if key not in values:
                parts.append(svg.text(x + wide / 2 - 1, y + 18, "–", "middle"))
            else:
                parts += _cell(x, y, wide, tall, values[key], notes.get(key, ""), span)
            if key == chosen:
                parts.append(
                    f'<rect x="{x - 2}" y="{y - 2}" width="{wide + 1}" height="{tall + 1}" '
                    'fill="none" stroke="currentColor" stroke-width="3"/>'
                )
    return svg.canvas(left + wide * len(columns) + 4, above + tall * len(rows) + 4, *parts)


def _cell(
    x: float, y: float, wide: int, tall: int, value: float, note: str, span: tuple[float, float]
) -> list[str]:
    paint = palette.colours(value, *span, "plain")
    red, green, blue = (int(c) for c in paint)
    ink = palette.ink(paint)
    drawn = [
        f'<rect x="{x}" y="{y}" width="{wide - 3}" height="{tall - 3}" '
        f'fill="rgb({red},{green},{blue})"/>',
        svg.text(x + wide / 2 - 1, y + 18, f"{value:.0f}", "middle", fill=ink),
    ]
    return drawn + (
        [svg.text(x + wide / 2 - 1, y + 34, note, "middle", fill=ink, font_size="11px")]
        if note
        else []
    )
