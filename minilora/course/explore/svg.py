"""Bars, lines and number grids as SVG text, drawn in about a millisecond.

What it replaces: matplotlib for small live pictures.
How it works: each function returns an `<svg>` string. Axes and text use `currentColor`, so that
they read on a light and on a dark page; series differ by dash and by a label at their end, not by
colour alone; every bar and cell carries its number as text.
What it leaves out: ticks at clever places, legends, zooming. Still pictures in lessons are
matplotlib's.
Where numerics differ: coordinates are rounded to a tenth of a pixel, numbers to three significant
digits.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from . import palette

FONT = "font-family:system-ui,sans-serif;font-size:13px"


def number(value: float) -> str:
    """Three significant digits, thousands with a comma: 0.0123, 4.5, 1,230,000."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def text(x: float, y: float, words: str, anchor: str = "start", **style: str) -> str:
    """A text element; `words` is escaped. Style names use underscores, as in font_weight="bold"."""
    extra = "".join(
        f' {name.replace("_", "-")}="{html.escape(str(value))}"' for name, value in style.items()
    )
    fill = "" if "fill" in style else ' fill="currentColor"'
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" '
        f'text-anchor="{anchor}"{fill}{extra}>{html.escape(str(words))}</text>'
    )


def canvas(width: float, height: float, *parts: str) -> str:
    """Wrap drawn parts into one `<svg>` that shrinks with a narrow page."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}"'
        f' style="max-width:100%;height:auto;{FONT}" aria-hidden="true">{"".join(parts)}</svg>'
    )


def bars(
    values: Sequence[float],
    labels: Sequence[str],
    *,
    top: float | None = None,
    unit: str = "",
    width: int = 560,
) -> str:
    """Horizontal bars, one a row: label, bar, number with unit. `top` fixes the longest bar's value
    over slider moves.
    """
    if len(values) != len(labels):
        raise ValueError(f"{len(values)} values but {len(labels)} labels")
    shown = [v if v is not None and math.isfinite(v) else 0.0 for v in values]
    top = top or max([abs(v) for v in shown] + [1e-30])
    left = 12 + 7.2 * max((len(str(label)) for label in labels), default=0)
    room = width - left - 90
    parts = []
    for row, (value, drawn, label) in enumerate(zip(values, shown, labels)):
        y, length = 6 + 26 * row, room * min(abs(drawn) / top, 1.0)
        parts.append(text(left - 8, y + 14, label, "end"))
        parts.append(
            f'<rect x="{left:.1f}" y="{y}" width="{max(length, 0.5):.1f}" height="18" '
            f'fill="{palette.hue(row)}"/>'
        )
        parts.append(text(left + length + 6, y + 14, f"{number(value)} {unit}".strip()))
    return canvas(width, 12 + 26 * len(values), *parts)


def _frame(
    width: int, height: int, x_range: tuple, y_range: tuple, x_label: str, y_label: str
) -> tuple[list[str], callable, callable]:
    """Axes with the four end values; and the functions that place an x and a y."""
    left, right, above, below = 64, width - 110, 26, height - 40

    def place_x(x):
        return left + (right - left) * (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1.0)

    def place_y(y):
        return below - (below - above) * (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1.0)

    parts = [
        f'<path d="M{left} {above}V{below}H{right}" fill="none" stroke="currentColor"/>',
        text(left, below + 16, number(x_range[0]), "middle"),
        text(right, below + 16, number(x_range[1]), "middle"),
        text(left - 6, below + 4, number(y_range[0]), "end"),
        text(left - 6, above + 6, number(y_range[1]), "end"),
        text((left + right) / 2, below + 32, x_label, "middle"),
        text(left - 40, above - 12, y_label),
    ]
    return parts, place_x, place_y


def lines(
    series: dict[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str = "",
    y_label: str = "",
    x_range: tuple | None = None,
    y_range: tuple | None = None,
    mark: tuple[float, float] | None = None,
    width: int = 620,
    height: int = 280,
) -> str:
    """Curves by name, each `(x, y)`; the name stands at the end of its curve. `mark` is a point to
    ring. Non-finite points are left out.
    """
    points = {
        name: np.array([p for p in zip(*xy) if np.isfinite(p).all()], dtype=float).reshape(-1, 2)
        for name, xy in series.items()
    }
    every = np.concatenate(list(points.values())) if points else np.zeros((0, 2))
    every = every if len(every) else np.array([[0.0, 0.0], [1.0, 1.0]])
    x_range = x_range or (every[:, 0].min(), every[:, 0].max())
    y_range = y_range or (every[:, 1].min(), every[:, 1].max())
    parts, place_x, place_y = _frame(width, height, x_range, y_range, x_label, y_label)
    taken: list[float] = []
    for index, (name, xy) in enumerate(points.items()):
        if not len(xy):
            continue
        ys = np.clip(xy[:, 1], *y_range)
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in zip(xy[:, 0], ys))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{palette.hue(index)}" '
            f'stroke-width="2" stroke-dasharray="{palette.dash(index)}"/>'
        )
        y_text = _free_row(place_y(ys[-1]) + 4, taken)
        parts.append(text(place_x(xy[-1, 0]) + 6, y_text, name, font_weight="bold"))
    if mark is not None and np.isfinite(mark).all():
        parts.append(
            f'<circle cx="{place_x(mark[0]):.1f}" '
            f'cy="{place_y(np.clip(mark[1], *y_range)):.1f}" r="6" fill="none" '
            'stroke="currentColor" stroke-width="2"/>'
        )
    return canvas(width, height, *parts)


def _free_row(y: float, taken: list[float]) -> float:
    """The nearest y at which a label collides with no other; it is added to `taken`."""
    steps = (sign * 14 * k for k in range(len(taken) + 1) for sign in (1, -1))
    place = next((y + s for s in steps if all(abs(y + s - other) >= 14 for other in taken)), y)
    taken.append(place)
    return place


def grid(
    matrix: Sequence[Sequence[float]],
    *,
    title: str = "",
    kind: str = "signed",
    span: tuple | None = None,
    cell: int = 46,
) -> str:
    """A small matrix, each cell coloured and carrying its number; for a 4 × 6 that is checked by
    hand. Larger: `picture.matrix`.
    """
    matrix = np.atleast_2d(np.asarray(matrix, dtype=np.float64))
    low, high = span or palette.span(matrix, kind)
    paint = palette.colours(matrix, low, high, kind)
    parts = [text(2, 14, title, font_weight="bold")] if title else []
    above = 22 if title else 2
    for (i, j), value in np.ndenumerate(matrix):
        x, y = 2 + j * cell, above + i * cell * 0.62
        red, green, blue = (int(c) for c in paint[i, j])
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 2}" height="{cell * 0.62 - 2:.1f}" '
            f'fill="rgb({red},{green},{blue})"/>'
        )
        parts.append(
            text(
                x + cell / 2 - 1,
                y + cell * 0.31 + 3,
                number(round(float(value), 3)),
                "middle",
                fill=palette.ink(paint[i, j]),
                font_size="12px",
            )
        )
    return canvas(matrix.shape[1] * cell + 4, above + matrix.shape[0] * cell * 0.62 + 4, *parts)
