"""Lesson 07, a photograph by rank: what r directions hold, how many numbers they take, and the
error known beforehand.

What it replaces: a row of five still pictures.
How it works: the singular value decomposition of the grey photograph is made once. A move
multiplies its first r directions, measures the error of the product against the photograph, and
states beside it the error that the singular values left out foretell.
What it leaves out: colour; entropy coding, by which a JPEG beats all this: see the lesson.
Where numerics differ: the picture is rounded to 256 greys, the errors are not.
"""

from __future__ import annotations

import base64
import functools
import html

import numpy as np

from ... import lowrank
from ..photograph import photograph
from . import layout, picture, svg
from .widget import Explorer, Slider

RANKS = range(1, 151)

WIDTH = 256

GREY = 128  # what is left out is drawn twice as strong around this grey


@functools.cache
def _decomposed() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """W (m, n), U s (m, k), Vᵀ (k, n), for each rank from 0 on the foretold error as a share of
    ‖W‖, and ‖W‖.
    """
    w = photograph()
    u, s, vt = lowrank.svd(w)
    left = np.sqrt(np.append(np.cumsum((s**2)[::-1])[::-1], 0.0))
    return w, u * s, vt, left / left[0], float(left[0])


def compute(rank: int) -> dict:
    """The approximation of this rank, what it stores, its error measured and foretold, as shares of
    ‖W‖.
    """
    w, left, right, foretold, size = _decomposed()
    near = left[:, :rank] @ right[:rank]
    m, n = w.shape
    return {
        "rank": rank,
        "near": near,
        "left out": w - near,
        "numbers": lowrank.stored_numbers(m, n, rank),
        "of": m * n,
        "error": float(np.linalg.norm(w - near) / size),
        "foretold": float(foretold[rank]),
        "curve": foretold,
    }


def _panel(pixels: np.ndarray, title: str, said: str) -> str:
    """One titled picture as SVG, so that the still for readers without a kernel holds it, too."""
    data = base64.b64encode(picture.png(pixels)).decode()
    height = pixels.shape[0] * WIDTH // pixels.shape[1]
    drawn = (
        f'<image x="0" y="22" width="{WIDTH}" height="{height}" '
        f'href="data:image/png;base64,{data}"><title>{html.escape(said)}</title></image>'
    )
    return svg.canvas(WIDTH, height + 24, svg.text(0, 14, title, font_weight="bold"), drawn)


def render(found: dict) -> tuple[str, str]:
    rank, numbers, of = found["rank"], found["numbers"], found["of"]
    share = f"{100 * numbers / of:.1f} % of {of:,}"
    label = (
        f"Rank {rank}: {numbers:,} numbers, "
        f"{share}{'' if numbers < of else ': nothing is saved'}. Error "
        f"{100 * found['error']:.3f} % of ‖W‖; "
        f"the singular values left out foretold {100 * found['foretold']:.3f} %."
    )
    near = np.clip(np.rint(found["near"]), 0, 255)
    shots = layout.beside(
        [
            _panel(near, f"rank {rank}", f"the photograph from {rank} directions"),
            _panel(
                np.clip(GREY + 2 * found["left out"], 0, 255),
                "what is left out, doubled",
                "the photograph minus its approximation",
            ),
        ]
    )
    ranks = np.arange(RANKS[0], RANKS[-1] + 1)
    curve = svg.lines(
        {"error": (ranks, 100 * found["curve"][ranks])},
        x_label="rank r",
        y_label="error in % of ‖W‖",
        x_range=(RANKS[0], RANKS[-1]),
        y_range=(0, float(100 * found["curve"][1])),
        mark=(rank, 100 * found["error"]),
        width=560,
        height=220,
    )
    return label, layout.below(
        [
            shots,
            curve,
            svg.bars([numbers, of], ["stored", "in the photograph"], top=of * 1.1, width=540),
        ]
    )


EXPLORER = Explorer("photo", compute, render, [Slider("rank", RANKS, start=20, label="rank r")])
