"""The exercises of lesson 05: scale, shift, look up, derive, pack, count.

What it replaces: calling a quantizer without knowing what it stores.
How it works: see `course.exercises`. No wrong answer can hide: the largest magnitude is negative,
data is not centred, numbers lie on thresholds, counts are odd, and no two sizes are equal.
What it leaves out: blocks in more than one dimension, calibration.
Where numerics differ: codes are whole numbers and must be equal; scales and levels may differ by
rounding.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from ..explore.blocks import normal_levels
from . import Exercise, Wrong

# ------------------------------------------------------------------------------------------- absmax


def _row(rng):
    x = rng.normal(size=40)
    x[int(rng.integers(40))] = -1.3 * np.abs(x).max()  # the largest magnitude is negative
    return x, int(rng.integers(4, 8))


def _absmax(
    x,
    bits,
    *,
    top=lambda bits: 2 ** (bits - 1) - 1,
    largest=lambda x: np.abs(x).max(),
    whole=np.rint,
):
    """The reference, and by its switches the ways to get it wrong."""
    scale = largest(x) / top(bits)
    return whole(x / scale).astype(int), float(scale)


ABSMAX = Exercise(
    "05-absmax",
    "Whole numbers and one scale",
    _row,
    _absmax,
    [
        Wrong(
            "the largest instead of the largest magnitude",
            lambda x, bits: _absmax(x, bits, largest=np.max),
            "x.max() misses large negative numbers; take the largest of |x|",
        ),
        Wrong(
            "2^(b−1) instead of 2^(b−1) − 1",
            lambda x, bits: _absmax(x, bits, top=lambda bits: 2 ** (bits - 1)),
            "the largest signed integer of b bits is 2^(b−1) − 1, for 8 bits 127; 128 does not fit",
        ),
        Wrong(
            "127 whatever the bits",
            lambda x, bits: _absmax(x, bits, top=lambda bits: 127),
            "127 belongs to 8 bits; with b bits the largest integer is 2^(b−1) − 1",
        ),
        Wrong(
            "cut off, not rounded",
            lambda x, bits: _absmax(x, bits, whole=np.trunc),
            "astype(int) cuts off; round to the nearest first, with np.rint",
        ),
        Wrong(
            "the levels of b unsigned bits",
            lambda x, bits: _absmax(x, bits, top=lambda bits: 2**bits - 1),
            "2^b − 1 is the largest unsigned integer; one bit is needed for the sign",
        ),
        Wrong(
            "7 whatever the bits",
            lambda x, bits: _absmax(x, bits, top=lambda bits: 7),
            "7 belongs to 4 bits, as in the example; with b bits the largest integer is "
            "2^(b−1) − 1",
        ),
        Wrong(
            "the scale first",
            lambda x, bits: _absmax(x, bits)[::-1],
            "the numbers are right, but the whole numbers come first and the scale second",
        ),
    ],
)


# --------------------------------------------------------------------------------------- zero point


def _skewed(rng):
    x = rng.gamma(2.0, size=50) - float(rng.uniform(0.3, 0.9))
    return x, int(rng.integers(3, 7))


def _zero_point(
    x, bits, *, steps=lambda bits: 2**bits - 1, z=lambda low, scale: np.rint(-low / scale), sign=1
):
    top = 2**bits - 1
    scale = (x.max() - x.min()) / steps(bits)
    zero = z(x.min(), scale)
    return np.clip(np.rint(x / scale) + sign * zero, 0, top).astype(int), float(scale), int(zero)


def _from_the_smallest(x, bits):
    _, scale, zero = _zero_point(x, bits)
    return np.rint((x - x.min()) / scale).astype(int), scale, zero


ZERO_POINT = Exercise(
    "05-zero-point",
    "A scale and a zero point",
    _skewed,
    _zero_point,
    [
        Wrong(
            "2^b steps",
            lambda x, bits: _zero_point(x, bits, steps=lambda bits: 2**bits),
            "2^b codes have 2^b − 1 steps between them, as ten fence posts have nine gaps",
        ),
        Wrong(
            "the zero point subtracted",
            lambda x, bits: _zero_point(x, bits, sign=-1),
            "the smallest number is negative and must get code 0: q = round(x/scale) + z, and "
            "back x = (q − z)·scale",
        ),
        Wrong(
            "no zero point",
            lambda x, bits: _zero_point(x, bits, z=lambda low, scale: 0),
            "without z all negative numbers are clipped to code 0; shift by z = round(−min/scale)",
        ),
        Wrong(
            "the zero point in the numbers' own unit",
            lambda x, bits: _zero_point(x, bits, z=lambda low, scale: np.rint(-low)),
            "z is a code, not a number of the data: divide −min by the scale before rounding",
        ),
        Wrong(
            "distances from the smallest rounded",
            _from_the_smallest,
            "the way back is (q − z) · scale with a whole z; nearest to x is round(x/scale) + "
            "z, and round((x − min)/scale) is sometimes its neighbour",
        ),
        Wrong(
            "a zero point that is not whole",
            lambda x, bits: (
                *_from_the_smallest(x, bits)[:2],
                -x.min() * (2**bits - 1) / (x.max() - x.min()),
            ),
            "z is a code, so it must be whole: round −min/scale before you add it",
        ),
        Wrong(
            "the zero point with the wrong sign",
            lambda x, bits: (*_zero_point(x, bits)[:2], -_zero_point(x, bits)[2]),
            "the codes are right, but z is the code of 0 itself, so it is positive: "
            "round(−min/scale)",
        ),
    ],
)


# ------------------------------------------------------------------------------------------ nearest


def _levels_and_numbers(rng):
    levels = np.sort(rng.uniform(-1, 1, size=11)).round(2)
    levels = np.unique(np.concatenate([levels, [-1.0, 1.0]]))
    ties = ((levels[:-1] + levels[1:]) / 2)[::2]  # lie exactly on a threshold
    return np.concatenate([rng.uniform(-1, 1, size=30), ties, levels[1:4]]), levels


def _nearest(x, levels, side="left"):
    return np.searchsorted((levels[:-1] + levels[1:]) / 2, x, side=side)


NEAREST = Exercise(
    "05-nearest",
    "The index of the nearest level",
    _levels_and_numbers,
    _nearest,
    [
        Wrong(
            "ties to the upper level",
            lambda x, levels: _nearest(x, levels, side="right"),
            "a number on a midpoint takes the lower level here, as bitsandbytes does: count "
            "midpoints m with m < x, not m ≤ x",
        ),
        Wrong(
            "the next level above",
            lambda x, levels: np.clip(np.searchsorted(levels, x), 0, len(levels) - 1),
            "this finds the first level that is not below x; the nearest may be the one "
            "before: compare with the midpoints",
        ),
        Wrong(
            "the level below",
            lambda x, levels: np.clip(np.searchsorted(levels, x, side="right") - 1, 0, None),
            "this rounds down; count the midpoints below x instead of the levels",
        ),
        Wrong(
            "the level instead of its index",
            lambda x, levels: levels[_nearest(x, levels)],
            "the values are right, but what is stored is their index: leave out levels[…]",
        ),
        Wrong(
            "the smallest of all distances",
            lambda x, levels: np.abs(x[:, None] - levels).argmin(1),
            "right but for ties: on a midpoint the two distances are equal on paper, and "
            "their rounding errors decide; count midpoints instead",
        ),
    ],
)


# ------------------------------------------------------------------------------------- normal float


def _grid(rng):
    return int(rng.integers(3, 6)), float(rng.uniform(0.94, 0.98))


def _quantiles(ps):
    return np.array([NormalDist().inv_cdf(p) for p in ps])


def _without_zero(bits, top):
    levels = _quantiles(np.linspace(1 - top, top, 2**bits))
    return levels / levels.max()


def _unscaled(bits, top):
    return normal_levels(bits, top) * NormalDist().inv_cdf(top)


def _mirrored(bits, top, kept):
    above = _quantiles(np.linspace(top, 0.5, 2 ** (bits - 1) + 1)[:-1])
    return np.sort(np.concatenate([above, [0.0], -above[kept]])) / above.max()


NORMAL = Exercise(
    "05-normal",
    "Levels at quantiles of the normal distribution",
    _grid,
    normal_levels,
    [
        Wrong(
            "no exact zero",
            _without_zero,
            "these are 2^b quantiles from 1 − top to top, and none of them is 0; take 2^(b−1) "
            "above zero, 2^(b−1) − 1 below, and 0 itself",
        ),
        Wrong(
            "not scaled to 1",
            _unscaled,
            "the largest level must be 1, since blocks are divided by their absmax: divide by "
            "the maximum",
        ),
        Wrong(
            "evenly spaced levels",
            lambda bits, top: np.linspace(-1, 1, 2**bits),
            "these are evenly spaced numbers; it is the probabilities that are evenly spaced, "
            "the levels are their quantiles",
        ),
        Wrong(
            "the larger half below zero",
            lambda bits, top: -normal_levels(bits, top)[::-1],
            "here the extra level is below zero; 2^(b−1) levels stand above and 2^(b−1) − 1 below",
        ),
        Wrong(
            "below as above, without the innermost",
            lambda bits, top: _mirrored(bits, top, slice(None, -1)),
            "below zero the 2^(b−1) − 1 probabilities are spaced anew from top to ½; to leave "
            "out the innermost of the upper ones is not the same",
        ),
        Wrong(
            "below as above, without the outermost",
            lambda bits, top: _mirrored(bits, top, slice(1, None)),
            "the levels below zero start at `top`, too: their 2^(b−1) − 1 probabilities are "
            "spaced anew from top to ½",
        ),
        Wrong(
            "probabilities as levels",
            lambda bits, top: (
                np.sort(
                    np.concatenate(
                        [
                            np.linspace(top, 0.5, 2 ** (bits - 1) + 1)[:-1] - 0.5,
                            0.5 - np.linspace(top, 0.5, 2 ** (bits - 1)),
                        ]
                    )
                )
                / (top - 0.5)
            ),
            "these are the probabilities; send each through NormalDist().inv_cdf to get the "
            "quantile",
        ),
    ],
)


# --------------------------------------------------------------------------------------------- pack


def _indices(rng):
    return (rng.integers(0, 16, size=2 * int(rng.integers(4, 9)) + 1).astype(np.uint8), 7)


def _pack(codes, filler, *, high=0, low=1):
    codes = np.append(codes, np.uint8(filler)) if len(codes) % 2 else codes
    return (codes[high::2].astype(np.uint8) << 4 | codes[low::2]).astype(np.uint8)


def _halves(codes, filler):
    codes = np.append(codes, np.uint8(filler)) if len(codes) % 2 else codes
    return (codes[: len(codes) // 2] << 4 | codes[len(codes) // 2 :]).astype(np.uint8)


PACK = Exercise(
    "05-pack",
    "Two codes in a byte",
    _indices,
    _pack,
    [
        Wrong(
            "the first in the low half",
            lambda codes, filler: _pack(codes, filler, high=1, low=0),
            "the first of two codes belongs in the high half: first << 4 | second",
        ),
        Wrong(
            "halves of the array instead of neighbours",
            _halves,
            "a byte holds two neighbours, codes[0] and codes[1], not one from each half of "
            "the array",
        ),
        Wrong(
            "the last code dropped",
            lambda codes, filler: _pack(codes[: len(codes) // 2 * 2], filler),
            "an odd count needs a filler for the last byte's low half; nothing may be dropped",
        ),
        Wrong(
            "filled with zero",
            lambda codes, filler: _pack(codes, 0),
            "the last byte's low half is `filler`, the index of the level 0, and not the "
            "index 0, which is the lowest level",
        ),
        Wrong(
            "added instead of shifted",
            lambda codes, filler: (
                np.append(codes, np.uint8(filler))[0::2] + np.append(codes, np.uint8(filler))[1::2]
            ),
            "a sum cannot be taken apart again; shift the first by four bits: first << 4 | second",
        ),
    ],
)


# ---------------------------------------------------------------------------------------- constants


def _sizes(rng):
    return (
        int(rng.choice([3, 4, 5])),
        int(rng.choice([32, 64, 128])),
        int(rng.choice([128, 256, 512])),
    )


def _stored(bits, block, outer):
    return bits + 8 / block + 32 / (block * outer)


CONSTANTS = Exercise(
    "05-constants",
    "Bits per weight with double quantization",
    _sizes,
    _stored,
    [
        Wrong(
            "the scales still in 32 bits",
            lambda bits, block, outer: bits + 32 / block,
            "that is single quantization; now each block's scale takes 8 bits, and 32 bits "
            "more for every `outer` scales",
        ),
        Wrong(
            "the outer scales forgotten",
            lambda bits, block, outer: bits + 8 / block,
            "the 8-bit scales are quantized in blocks themselves: each `outer` of them share "
            "a 32-bit scale",
        ),
        Wrong(
            "an outer scale for `outer` weights",
            lambda bits, block, outer: bits + 8 / block + 32 / outer,
            "an outer scale serves `outer` blocks, that is block · outer weights",
        ),
        Wrong(
            "both added in full",
            lambda bits, block, outer: bits + (32 + 8) / block + 32 / (block * outer),
            "the 32-bit scale of a block is replaced by an 8-bit code, not kept beside it",
        ),
        Wrong(
            "8 and 32 exchanged",
            lambda bits, block, outer: bits + 32 / block + 8 / (block * outer),
            "it is the other way round: the scale of a block takes 8 bits, the scale of "
            "`outer` scales takes 32",
        ),
    ],
    tolerance=1e-9,
)


EXERCISES = [ABSMAX, ZERO_POINT, NEAREST, NORMAL, PACK, CONSTANTS]
