"""Colours that colour-blind readers can tell apart, and colour maps for matrices.

What it replaces: matplotlib's colour maps in the slider path, where importing and drawing cost too
much per move.
How it works: eight hues after Okabe and Ito (2008), to be used together with dashes and labels,
never alone; and two colour maps, each a straight interpolation between a few anchors: `signed`
(blue below zero, white at zero, orange above) and `plain` (dark blue to yellow, its lightness
rising steadily so that it also reads in grey).
What it leaves out: other maps. Two are enough, and a course looks calmer so.
Where numerics differ: values outside the range are clipped to its ends; NaN is drawn in the grey of
`MISSING`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HUES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8A6D00", "#767676")

DASHES = ("", "6 3", "2 3", "9 3 2 3", "1 2", "12 4", "4 4", "8 2 2 2")

MISSING = (118, 118, 118)

ANCHORS = {
    "signed": ((0, 84, 147), (86, 160, 211), (247, 247, 247), (236, 160, 60), (176, 82, 0)),
    "plain": ((0, 32, 77), (66, 78, 107), (124, 123, 120), (187, 175, 108), (255, 234, 70)),
}


def hue(index: int) -> str:
    """The colour of series `index`; after eight they repeat, with other dashes."""
    return HUES[index % len(HUES)]


def dash(index: int) -> str:
    """The stroke-dasharray that goes with `hue(index)`, so that no line is known by its colour
    alone.
    """
    return DASHES[(index + index // len(HUES)) % len(DASHES)]


def colours(values: np.ndarray, low: float, high: float, kind: str = "signed") -> np.ndarray:
    """RGB bytes, shape values.shape + (3,), of a colour map stretched from `low` to `high`."""
    anchors = np.array(ANCHORS[kind], dtype=np.float64)
    values = np.asarray(values, dtype=np.float64)
    span = high - low if high > low else 1.0
    place = np.clip((np.nan_to_num(values) - low) / span, 0.0, 1.0) * (len(anchors) - 1)
    left = np.minimum(place.astype(int), len(anchors) - 2)
    share = (place - left)[..., None]
    mixed = anchors[left] * (1 - share) + anchors[left + 1] * share
    return np.where(np.isnan(values)[..., None], MISSING, np.rint(mixed)).astype(np.uint8)


def span(values: np.ndarray, kind: str = "signed") -> tuple[float, float]:
    """The range a colour map is stretched over: symmetric about zero for `signed`, from minimum to
    maximum for `plain`.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0
    if kind == "signed":
        top = float(np.abs(finite).max()) or 1.0
        return -top, top
    return float(finite.min()), float(finite.max())


def ink(colour: Sequence[int]) -> str:
    """Black or white text, whichever stands out more on an RGB colour (WCAG 2: they tie at a
    luminance of 0.179).
    """
    light = sum(
        share * (channel / 255) ** 2.2
        for share, channel in zip((0.2126, 0.7152, 0.0722), (int(c) for c in colour))
    )
    return "#000" if light > 0.179 else "#fff"
