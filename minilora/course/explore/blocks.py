"""Lesson 05: bits, block size and code on real weights of the shipped base.

What it replaces: a claim that four bits are enough.
How it works: one matrix of the shipped base, (256, 256), is quantized with the package's own
functions. Drawn are the histogram of its numbers after each has been divided by the absmax of its
block, the levels of the code under it, and the error beside what the other codes of as many bits
leave. `normal_levels` carries NF4's construction to other numbers of bits.
What it leaves out: double quantization; what the error does to the model's loss, which the lesson's
table has.
Where numerics differ: nowhere from `minilora.quantize`; with 4 bits `normal_levels` is NF4 up to
the seven digits of its outermost probability.
"""

from __future__ import annotations

import functools
from statistics import NormalDist

import numpy as np

from ...quantize import codebooks
from ...quantize.blockwise import quantize, scale_plain
from . import layout, palette, svg
from .widget import Explorer, Slider

CODES = ("int", "normal float", "zero point")

BLOCKS = (16, 32, 64, 128, 256, 1024, 4096, 65536)

BINS = np.linspace(-1, 1, 82)


def outermost(bits: int) -> float:
    """The probability of the outermost level: halfway between the ends of a grid of 2^b steps and
    one of 2^b − 1.
    """
    return 1 - (1 / 2 ** (bits + 1) + 1 / (2 ** (bits + 1) - 2)) / 2


def normal_levels(bits: int, top: float) -> np.ndarray:
    """2^bits levels at quantiles of the normal distribution: half of them above zero, zero, the
    others below; divided by the largest.
    """
    half = 2 ** (bits - 1)
    above = [NormalDist().inv_cdf(p) for p in np.linspace(top, 0.5, half + 1)[:-1]]
    below = [-NormalDist().inv_cdf(p) for p in np.linspace(top, 0.5, half)[:-1]]
    levels = np.array(sorted([*above, 0.0, *below]))
    return levels / levels.max()


@functools.cache
def weights() -> np.ndarray:
    """A query matrix of the shipped base, fp32 (256, 256)."""
    from safetensors import safe_open

    from ...system.files import data_folder

    with safe_open(str(data_folder() / "base" / "model.safetensors"), "pt") as file:
        return file.get_tensor("model.layers.2.self_attn.q_proj.weight").float().numpy()


@functools.cache
def book(code: str, bits: int):
    """What `quantize` takes as its code."""
    if code == "zero point":
        return f"uint{bits}"
    return f"int{bits}" if code == "int" else codebooks.custom(normal_levels(bits, outermost(bits)))


@functools.cache
def error(code: str, bits: int, block: int) -> tuple[float, float]:
    """(rms error relative to the rms of the weights, bits stored per weight) without the levels of
    a code book, which a model stores once.
    """
    W = weights()
    q = quantize(W, book(code, bits), block)
    gone = float(np.sqrt(((q.dequantize() - W) ** 2).mean() / (W**2).mean()))
    return gone, bits + 8 * (
        q.scale.nbytes + q.zero.nbytes if code == "zero point" else q.absmax.nbytes
    ) / W.size


@functools.cache
def histogram(block: int) -> np.ndarray:
    """Shares of the weights by their size beside the absmax of their block."""
    scaled, _ = scale_plain(weights().reshape(-1), block)
    return np.histogram(scaled, BINS)[0] / scaled.size


def levels(code: str, bits: int) -> np.ndarray:
    """Levels between −1 and 1; those of a zero point are a ruler that is laid anew in each block,
    here over the whole width.
    """
    if code == "int":
        return codebooks.integer_levels(bits)[1:]  # the lowest is never used
    return (
        normal_levels(bits, outermost(bits))
        if code == "normal float"
        else np.linspace(-1, 1, 2**bits)
    )


def compute(code: str, bits: int, block: int) -> dict:
    """Histogram, levels, and the errors of all codes with as many bits."""
    errors = {name: error(name, bits, block) for name in CODES}
    return {
        "code": code,
        "bits": bits,
        "block": block,
        "shares": histogram(block),
        "levels": levels(code, bits),
        "errors": errors,
    }


def _picture(found: dict) -> str:
    """The histogram, and below it a tick for each level."""
    left, right, ground, tall = 20, 600, 150, 120
    top = found["shares"][1:-1].max()  # the outermost bins hold each block's largest number
    width = (right - left) / len(found["shares"])
    parts = [
        svg.text(2, 14, "the weights, each divided by the largest of its block", font_weight="bold")
    ]
    for i, share in enumerate(found["shares"]):
        height = tall * min(share / top, 1.0)
        parts.append(
            f'<rect x="{left + i * width:.1f}" y="{ground - height:.1f}" '
            f'width="{width - 1:.1f}" height="{height:.1f}" fill="{palette.hue(5)}"/>'
        )
    ticks = "".join(
        f"M{left + (right - left) * (level + 1) / 2:.1f} {ground + 4}v18"
        for level in found["levels"]
    )
    parts.append(f'<path d="{ticks}" stroke="{palette.hue(3)}" stroke-width="2" fill="none"/>')
    parts += [
        svg.text(left + (right - left) * (v + 1) / 2, ground + 38, f"{v:g}", "middle")
        for v in (-1, 0, 1)
    ]
    parts.append(
        svg.text(
            left + (right - left) * 0.75, ground + 38, f"{len(found['levels'])} levels", "middle"
        )
    )
    return svg.canvas(620, ground + 44, *parts)


def render(found: dict) -> tuple[str, str]:
    gone, stored = found["errors"][found["code"]]
    best = min(found["errors"], key=lambda name: found["errors"][name][0])
    label = (
        f"{found['code']}, {found['bits']} bits, blocks of {found['block']:,}: {stored:.3f} "
        f"bits stored per weight, scales included; the error is {100 * gone:.2f} % "
        f"of the weights' size. Of the three codes {best} leaves the smallest error here."
    )
    bars = svg.bars(
        [100 * found["errors"][name][0] for name in CODES],
        [f"{name}{' ←' if name == found['code'] else ''}" for name in CODES],
        unit="% error",
    )
    return label, layout.below([_picture(found), bars])


EXPLORER = Explorer(
    "blocks",
    compute,
    render,
    [
        Slider("code", CODES, start="normal float", label="code"),
        Slider("bits", range(2, 9), start=4, label="bits"),
        Slider("block", BLOCKS, start=64, label="block size"),
    ],
)
