"""Lesson 04: flip the eight bits of a number, and move the border between exponent and mantissa.

What it replaces: a table of bit patterns to be taken on trust.
How it works: a sign bit, `exponent` bits and the rest as mantissa, read as IEEE 754 does
(`numerics`). The picture shows each bit with its part, the three fields as numbers, the value they
give, and where it stands among all positive values of the format.
What it leaves out: the formats without infinity; there the highest exponent field holds numbers,
too.
Where numerics differ: nowhere; decoding is exact.
"""

from __future__ import annotations

import functools

import numpy as np

from ... import numerics
from . import layout, palette, svg
from .widget import Explorer, Slider

WIDTH = 8

START = 0b01000101

PARTS = (("sign", 3), ("exponent", 0), ("mantissa", 1))  # and their colours


@functools.cache
def positives(exponent: int) -> np.ndarray:
    """All positive finite values of the format, rising."""
    fmt = numerics.get(f"e{exponent}m{WIDTH - 1 - exponent}")
    return numerics.decode(np.arange(1, fmt.max_code + 1), fmt)


def compute(exponent: int, **flags: int) -> dict:
    """The pattern that the bits b7 … b0 make, its fields and its value."""
    fmt = numerics.get(f"e{exponent}m{WIDTH - 1 - exponent}")
    digits = [flags[f"b{place}"] for place in range(WIDTH - 1, -1, -1)]
    code = int("".join(map(str, digits)), 2)
    sign, field, mantissa = (int(part) for part in numerics.fields(code, fmt))
    return {
        "format": fmt,
        "digits": digits,
        "sign": sign,
        "field": field,
        "mantissa": mantissa,
        "value": float(numerics.decode(code, fmt)),
    }


def told(found: dict) -> str:
    """The value as the formula that gives it."""
    fmt, field, mantissa = found["format"], found["field"], found["mantissa"]
    minus, parts = "−" if found["sign"] else "", 2**fmt.mantissa
    if field == 2**fmt.exponent - 1:
        return f"{minus}infinity" if mantissa == 0 else "NaN, not a number"
    if field == 0:
        shown = f"{mantissa}/{parts} · 2^{1 - fmt.bias}".replace("^-", "^−")
        return f"{minus}{shown} = {minus}{abs(found['value']):g} (field 0: subnormal, no hidden 1)"
    shown = f"(1 + {mantissa}/{parts}) · 2^({field} − {fmt.bias})"
    return f"{minus}{shown} = {minus}{abs(found['value']):g}"


def _boxes(found: dict) -> str:
    """Eight boxes, coloured and named by part."""
    fmt, side, parts = found["format"], 54, []
    widths = (1, fmt.exponent, fmt.mantissa)
    start = 0
    for (name, hue), width, number in zip(
        PARTS, widths, (found["sign"], found["field"], found["mantissa"])
    ):
        for place in range(start, start + width):
            x, lit = 4 + place * side, found["digits"][place]
            fill = palette.hue(hue) if lit else "none"
            parts.append(
                f'<rect x="{x}" y="4" width="{side - 6}" height="{side - 6}" fill="{fill}" '
                f'stroke="{palette.hue(hue)}" stroke-width="3"/>'
            )
            ink = (
                {"fill": palette.ink([int(palette.hue(hue)[i : i + 2], 16) for i in (1, 3, 5)])}
                if lit
                else {}
            )
            parts.append(
                svg.text(x + side / 2 - 3, 36, str(lit), "middle", font_size="20px", **ink)
            )
        middle = 4 + (start + width / 2) * side - 3
        parts.append(
            svg.text(
                middle,
                70,
                f"{name[:4]}. {number}" if width == 1 and name != "sign" else f"{name} {number}",
                "middle",
            )
        )
        start += width
    return svg.canvas(WIDTH * side + 8, 78, *parts)


def _ruler(found: dict) -> str:
    """All positive values of the format as ticks over powers of two, the chosen one marked."""
    values, left, right = positives(found["format"].exponent), 30, 590
    low, high = np.log2(values[0]) - 1, np.log2(values[-1]) + 1

    def place(value: float) -> float:
        return left + (right - left) * (np.log2(value) - low) / (high - low)

    ticks = "".join(f"M{place(v):.1f} 26V40" for v in values)
    parts = [
        f'<path d="{ticks}" stroke="currentColor" fill="none"/>',
        f'<path d="M{left} 40H{right}" stroke="currentColor"/>',
    ]
    for value, anchor in ((values[0], "start"), (1.0, "middle"), (values[-1], "end")):
        parts.append(svg.text(place(value), 58, svg.number(value), anchor))
    size = abs(found["value"])
    if np.isfinite(size) and size > 0:
        parts.append(f'<path d="M{place(size):.1f} 24l-7 -12h14z" fill="{palette.hue(3)}"/>')
    return svg.canvas(620, 66, *parts)


def render(found: dict) -> tuple[str, str]:
    fmt, values = found["format"], positives(found["format"].exponent)
    pattern = "".join(map(str, found["digits"]))
    label = (
        f"{pattern[0]} {pattern[1 : 1 + fmt.exponent]} {pattern[1 + fmt.exponent :]}: "
        f"{told(found)}. With {fmt.exponent} exponent and {fmt.mantissa} mantissa bits there "
        "are "
        f"{len(values)} positive numbers, from {svg.number(values[0])} to "
        f"{svg.number(values[-1])}; the ticks stand over a ruler of powers of two."
    )
    return label, layout.below([_boxes(found), _ruler(found)])


EXPLORER = Explorer(
    "bits",
    compute,
    render,
    [
        Slider("exponent", range(2, 7), start=4, label="exponent bits"),
        *(
            Slider(f"b{place}", (0, 1), start=START >> place & 1, label=f"bit {place}")
            for place in range(WIDTH - 1, -1, -1)
        ),
    ],
)
