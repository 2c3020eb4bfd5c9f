"""Lesson 08, small enough for pencil and paper: ΔW = (α/r) · B · A for a 4 × 6 matrix.

What it replaces: a drawing of the two factors whose numbers nobody can check.
How it works: B (4, 4) and A (4, 6) hold small whole numbers. Rank r takes the first r columns of B
and the first r rows of A; the picture shows both, their scaled product, and how many numbers they
store beside the 24 of W.
What it leaves out: training; see `explore.alpha` for a real layer.
Where numerics differ: nowhere; the products are exact, the printed numbers have three digits.
"""

from __future__ import annotations

import numpy as np

from . import layout, svg
from .widget import Explorer, Slider

B = np.array([[1, 0, 2, -1], [2, -1, 0, 1], [0, 1, -1, 2], [-1, 2, 1, 1]], dtype=float)

A = np.array(
    [[1, 0, -1, 2, 0, 1], [0, 2, 1, 0, -1, 1], [1, 1, 0, -1, 2, 0], [2, 0, 1, 1, 0, -1]],
    dtype=float,
)

CELL = 40


def compute(rank: int, alpha: int) -> dict:
    """The factors of this rank, their scaled product and what they cost."""
    b, a = B[:, :rank], A[:rank]
    delta = alpha / rank * b @ a
    return {
        "rank": rank,
        "alpha": alpha,
        "scale": alpha / rank,
        "B": b,
        "A": a,
        "delta": delta,
        "numbers": b.size + a.size,
        "of": delta.size,
        "rank of delta": int(np.linalg.matrix_rank(delta)),
    }


def render(found: dict) -> tuple[str, str]:
    scale, numbers, of = svg.number(found["scale"]), found["numbers"], found["of"]
    if numbers < of:
        cost = f"{of - numbers} fewer than W has"
    else:
        cost = (
            "no fewer than W has"
            if numbers == of
            else f"{numbers - of} more than W has: nothing is saved"
        )
    label = (
        f"Rank {found['rank']}, α {found['alpha']}: B and A store {numbers} numbers, {cost}. "
        f"ΔW = {scale} · B · A has rank {found['rank of delta']}."
    )
    height = 130
    factors = layout.beside(
        [
            svg.grid(found["B"], title=f"B (4, {found['rank']})", span=(-2, 2), cell=CELL),
            layout.sign("×", height),
            svg.grid(found["A"], title=f"A ({found['rank']}, 6)", span=(-2, 2), cell=CELL),
            layout.sign(f"× {scale}  =", height, 90),
        ],
        gap=6,
    )
    product = svg.grid(found["delta"], title="ΔW (4, 6)", span=(-16, 16), cell=52)
    stored = svg.bars([numbers, of], ["stored in B and A", "stored in W"], top=40, width=460)
    return label, layout.below([factors, product, stored])


EXPLORER = Explorer(
    "rank",
    compute,
    render,
    [
        Slider("rank", range(1, 5), start=2, label="rank r"),
        Slider("alpha", range(1, 17), start=4, label="alpha α"),
    ],
)
