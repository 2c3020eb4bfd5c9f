"""The graph of an expression as a picture: one box for each value, from the leaves on the left to
the result.

What it replaces: graphviz and torchviz, which need a program outside Python.
How it works: a value stands one column to the right of the last of its inputs; inside a column
boxes are stacked. Each
    box says how the value was made, what it is, and, if asked, the gradient that reaches it.
What it leaves out: keeping lines from crossing, and large graphs: past 60 values nobody can read
it.
"""

from __future__ import annotations

from html import escape

import numpy as np

from ..errors import MiniloraError
from .tensor import Tensor, gradients, topological_order

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 118, 52, 40, 14, 8


def draw(root: Tensor, with_gradients: bool = False, most: int = 60) -> str:
    """The graph that led to `root`, as SVG text (colours from the page through currentColor,
    readable aloud).

    with_gradients: add to each box the derivative of root; root must then hold one number. `.grad`
    is left untouched.
    """
    order = topological_order(root)
    if len(order) > most:
        raise MiniloraError(
            f"the graph has {len(order)} values, more than {most}; draw a smaller part or "
            "raise `most`"
        )
    slopes = {id(t): g for t, g in gradients(root)} if with_gradients and root.requires_grad else {}
    place, columns = _layout(order)
    width = MARGIN * 2 + columns * (WIDTH + GAP_X) - GAP_X
    height = max(y for _, y in place.values()) + HEIGHT + MARGIN
    edges = [(parent, tensor) for tensor in order for parent, _ in tensor._inputs]
    said = (
        f"Graph of {len(order)} values and {len(edges)} steps: {_spoken(root)}, which is "
        f"{_short(root.data)}."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(said)}" data-values="{len(order)}" '
        f'data-edges="{len(edges)}" '
        f'font-family="sans-serif" font-size="12" fill="currentColor" stroke="none">'
    ]
    parts += [_line(place[id(a)], place[id(b)]) for a, b in edges]
    parts += [_box(t, place[id(t)], slopes.get(id(t))) for t in order]
    return "".join(parts) + "</svg>"


def _layout(order: list[Tensor]) -> tuple[dict[int, tuple[int, int]], int]:
    """The upper left corner of each box by the tensor's id, and the number of columns."""
    column: dict[int, int] = {}
    for tensor in order:
        column[id(tensor)] = 1 + max(
            (column[id(parent)] for parent, _ in tensor._inputs), default=-1
        )
    for tensor in reversed(order):  # a leaf moves right, next to the first box that uses it
        for parent, _ in tensor._inputs:
            if parent.is_leaf:
                users = [column[id(t)] for t in order for p, _ in t._inputs if p is parent]
                column[id(parent)] = min(users) - 1
    filled = [0] * (max(column.values()) + 1)
    place = {}
    for tensor in order:
        c = column[id(tensor)]
        place[id(tensor)] = (MARGIN + c * (WIDTH + GAP_X), MARGIN + filled[c] * (HEIGHT + GAP_Y))
        filled[c] += 1
    return place, len(filled)


def _line(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + WIDTH, start[1] + HEIGHT // 2, end[0], end[1] + HEIGHT // 2
    middle = (x1 + x2) // 2
    return (
        f'<path d="M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}" fill="none" '
        'stroke="currentColor" '
        f'stroke-opacity="0.6"/><path d="M{x2 - 6} {y2 - 4}L{x2} {y2}L{x2 - 6} {y2 + 4}Z"/>'
    )


def _box(tensor: Tensor, corner: tuple[int, int], slope) -> str:
    """Leaves that learn have a thick frame, constants a dashed one, results a thin one."""
    x, y = corner
    leaf = 'stroke-width="2.5"' if tensor.requires_grad else 'stroke-dasharray="4 3"'
    frame = 'fill="none" stroke="currentColor" ' + ('stroke-width="1"' if tensor.op else leaf)
    rows = [_title(tensor), _short(tensor.data)] + (
        [] if slope is None else [f"grad {_short(slope)}"]
    )
    text = "".join(
        f'<text x="{x + WIDTH // 2}" y="{y + HEIGHT // 2 + 4 + 16 * i - 8 * (len(rows) - 1)}" '
        'text-anchor="middle"'
        f' font-weight="{"normal" if i else "bold"}">{escape(row)}</text>'
        for i, row in enumerate(rows)
    )
    return f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" {frame}/>{text}'


def _title(tensor: Tensor) -> str:
    name = tensor.name or ("" if tensor.op else "leaf" if tensor.requires_grad else "constant")
    return f"{name} = {tensor.op}"[:18] if name and tensor.op else (name or tensor.op)[:18]


def _short(data: np.ndarray) -> str:
    """The number, or the shape of many."""
    return f"{data.item():.3g}" if data.size == 1 else "shape " + "×".join(map(str, data.shape))


def _spoken(tensor: Tensor) -> str:
    inputs = [parent.name or parent.op or "a constant" for parent, _ in tensor._inputs]
    said = tensor.name or "the result"
    return f"{said} is {tensor.op} of {' and '.join(inputs)}" if inputs else said
