"""Lesson 04: how many exponent and how many mantissa bits? What the first buy in range, and the
second in precision.

What it replaces: a table of formats in which nothing can be changed.
How it works: an IEEE-like format of any split is built (`numerics`), π is rounded to it, and drawn
are: the format's numbers around π, as ticks of a ruler from 3 to 3.3; and its range in powers of
two beside those of fp16, bf16 and fp32, the subnormal part thinner.
What it leaves out: formats without infinity, and those with fewer than one mantissa bit.
Where numerics differ: nowhere; rounding is exact, to nearest, ties to even.
"""

from __future__ import annotations

import math

import numpy as np

from ... import numerics
from . import layout, palette, svg
from .widget import Explorer, Slider

RULER = (3.0, 3.3)

KNOWN = ("fp16", "bf16", "fp32")

DENSE = 280  # more ticks than that are drawn as a grey band

POWERS = (-150, 130)


def compute(exponent: int, mantissa: int) -> dict:
    """The format, π in it, and its numbers between 3 and 3.3."""
    fmt = numerics.get(f"e{exponent}m{mantissa}")
    spacing = 2.0 ** (1 - mantissa)  # of the numbers from 2 to 4
    low, high = math.ceil(RULER[0] / spacing), math.floor(RULER[1] / spacing)
    known = next(
        (
            name
            for name in KNOWN
            if (numerics.get(name).exponent, numerics.get(name).mantissa) == (exponent, mantissa)
        ),
        "",
    )
    return {
        "format": fmt,
        "known": known,
        "pi": float(numerics.round_to(math.pi, fmt)),
        "bits": numerics.bits(math.pi, fmt),
        "spacing": spacing,
        "count": high - low + 1,
        "ticks": np.arange(low, high + 1) * spacing if high - low < DENSE else None,
    }


def _ruler(found: dict) -> str:
    """The format's numbers from 3 to 3.3, with π and what becomes of it."""
    left, right = 40, 580

    def place(value: float) -> float:
        return left + (right - left) * (value - RULER[0]) / (RULER[1] - RULER[0])

    parts = [
        svg.text(2, 14, "the numbers of the format from 3 to 3.3", font_weight="bold"),
        f'<path d="M{left} 62H{right}" stroke="currentColor"/>',
    ]
    if found["ticks"] is None:
        parts.append(
            f'<rect x="{left}" y="44" width="{right - left}" height="18" fill="{palette.hue(7)}"/>'
        )
    else:
        parts.append(
            f'<path d="{"".join(f"M{place(v):.1f} 44V62" for v in found["ticks"])}" '
            'stroke="currentColor" fill="none"/>'
        )
    parts += [svg.text(place(v), 80, f"{v:g}", "middle") for v in (3.0, 3.1, 3.2, 3.3)]
    parts.append(
        f'<path d="M{place(math.pi):.1f} 66V30" stroke="{palette.hue(3)}" '
        f'stroke-width="3"/>{svg.text(place(math.pi), 26, "π", "middle")}'
    )
    parts.append(
        f'<circle cx="{place(found["pi"]):.1f}" cy="53" r="6" fill="none" '
        f'stroke="{palette.hue(0)}" stroke-width="3"/>'
    )
    return svg.canvas(620, 88, *parts)


def _ranges(found: dict) -> str:
    """From the smallest to the largest number, in powers of two; the subnormal part is the thin
    one.
    """
    rows = [("here", found["format"]), *((name, numerics.get(name)) for name in KNOWN)]
    left, right = 60, 600

    def place(power: float) -> float:
        return left + (right - left) * (power - POWERS[0]) / (POWERS[1] - POWERS[0])

    parts = [svg.text(2, 14, "range, in powers of two", font_weight="bold")]
    for row, (name, fmt) in enumerate(rows):
        y = 26 + 24 * row
        tiny, normal, top = (
            math.log2(v) for v in (fmt.smallest_subnormal, fmt.smallest_normal, fmt.max)
        )
        colour = palette.hue(3 if row == 0 else 7)
        parts.append(svg.text(left - 8, y + 13, name, "end"))
        parts.append(
            f'<rect x="{place(tiny):.1f}" y="{y + 6}" '
            f'width="{place(normal) - place(tiny):.1f}" height="4" fill="{colour}"/>'
        )
        parts.append(
            f'<rect x="{place(normal):.1f}" y="{y}" width="{place(top) - place(normal):.1f}" '
            f'height="16" fill="{colour}"/>'
        )
    below = 26 + 24 * len(rows)
    parts += [
        svg.text(place(p), below + 12, f"2^{p}".replace("-", "−"), "middle")
        for p in (-126, -64, -14, 16, 64, 127)
    ]
    return svg.canvas(620, below + 20, *parts)


def render(found: dict) -> tuple[str, str]:
    fmt, pi = found["format"], found["pi"]
    name = f"{found['known']}, " if found["known"] else ""
    label = (
        f"{name}{fmt.bits} bits: 1 sign, {fmt.exponent} exponent, {fmt.mantissa} mantissa. π "
        f"becomes {pi:.9g}, wrong by {100 * abs(pi - math.pi) / math.pi:.2g} % (bits "
        f"{found['bits']}); "
        f"between 3 and 3.3 it has {found['count']:,}. Smallest {fmt.smallest_subnormal:.2g}, "
        f"largest {fmt.max:.3g}."
    )
    return label, layout.below([_ruler(found), _ranges(found)])


EXPLORER = Explorer(
    "formats",
    compute,
    render,
    [
        Slider("exponent", range(2, 9), start=5, label="exponent bits"),
        Slider("mantissa", range(1, 24), start=10, label="mantissa bits"),
    ],
)
