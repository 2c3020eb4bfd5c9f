"""The exercises of lesson 04: decode, round, weigh, add up, scale.

What it replaces: believing that a number in a computer is the number one wrote.
How it works: see `course.exercises`. No wrong answer can hide: the patterns hold negative, normal
and subnormal numbers, what is to be rounded holds ties of both parities, and sums are long enough
for small terms to get lost.
What it leaves out: infinity and NaN; formats whose highest exponent field holds numbers.
Where numerics differ: decoding and rounding are exact, so the tolerance is that of float64; a sum
in fp16 is right only step by step.
"""

from __future__ import annotations

import numpy as np

from . import Exercise, Wrong

# ------------------------------------------------------------------------------------------- decode


def _patterns(rng):
    exponent, mantissa = int(rng.integers(3, 5)), int(rng.integers(3, 6))
    finite = (2**exponent - 1) << mantissa  # from here on: infinity and NaN
    normal = [int(code) for code in rng.integers(1 << mantissa, finite, size=4)]
    subnormal = [int(code) for code in rng.integers(1, 1 << mantissa, size=2)]
    sign = 1 << (exponent + mantissa)
    return [0, *normal, *subnormal, normal[0] | sign, subnormal[0] | sign], exponent, mantissa


def _value(
    code,
    exponent,
    mantissa,
    *,
    one=1,
    bias_off=0,
    lowest=(0, 1),
    whole=False,
    cut=True,
):
    """The reference, and by its switches the ways to get it wrong. lowest: the hidden bit and the
    exponent where the field is 0.
    """
    sign, field, rest = (
        code >> (exponent + mantissa),
        code >> mantissa & (2**exponent - 1),
        code & (2**mantissa - 1),
    )
    field = field if cut else code >> mantissa
    bias = 2 ** (exponent - 1) - 1 + bias_off
    part = rest if whole else rest / 2**mantissa
    hidden, power = lowest if field == 0 else (one, field)
    size = (hidden + part) * 2.0 ** (power - bias)
    return -size if sign else size


def _run_all(answer, codes, exponent, mantissa):
    return [float(answer(code, exponent, mantissa)) for code in codes]


DECODE = Exercise(
    "04-decode",
    "The number behind the bits",
    _patterns,
    _value,
    [
        Wrong(
            "the hidden one forgotten",
            lambda *a: _value(*a, one=0),
            "a normal number is (1 + m/2^M)·2^(field − bias); the leading 1 is not stored, so "
            "you have to add it",
        ),
        Wrong(
            "bias off by one",
            lambda *a: _value(*a, bias_off=1),
            "the bias is 2^(E−1) − 1, for fp16 15 and not 16, so that 1 has the field 01111",
        ),
        Wrong(
            "subnormals read as normals",
            lambda *a: _value(*a, lowest=(1, 0)),
            "field 0 is special: no hidden 1, and the exponent is that of field 1, so the "
            "number is m/2^M · 2^(1 − bias)",
        ),
        Wrong(
            "subnormals half as large",
            lambda *a: _value(*a, lowest=(0, 0)),
            "with the field 0 the exponent is that of field 1, 1 − bias, and not 0 − bias",
        ),
        Wrong(
            "the sign left in the field",
            lambda *a: _value(*a, cut=False),
            "code >> M still holds the sign bit; & (2**E - 1) keeps the E bits of the field",
        ),
        Wrong(
            "the sign ignored",
            lambda *a: abs(_value(*a)),
            "the highest bit is the sign; where it is set the number is negative",
        ),
        Wrong(
            "the mantissa as a whole number",
            lambda *a: _value(*a, whole=True),
            "the mantissa's bits stand behind the point; divide them by 2^M",
        ),
    ],
    run=_run_all,
    tolerance=1e-12,
)


# -------------------------------------------------------------------------------------------- round


def _to_round(rng):
    mantissa = int(rng.integers(3, 7))
    steps = rng.integers(2**mantissa, 2 ** (mantissa + 1), size=8)
    # halfway between two neighbours
    ties = (steps + 0.5) * 2.0 ** (rng.integers(-3, 3, size=8) - mantissa)
    anything = rng.normal(size=24) * 2.0 ** rng.integers(-2, 3, size=24)
    return np.concatenate([ties, -ties, anything]), mantissa


def _spacing(x, mantissa):
    return 2.0 ** (np.frexp(np.abs(x))[1] - 1 - mantissa)  # frexp: |x| = f · 2^e with f from ½ to 1


def _rounded(x, mantissa):
    q = _spacing(x, mantissa)
    return np.rint(x / q) * q


def _half_up(x, mantissa):
    q = _spacing(x, mantissa)
    return np.sign(x) * np.floor(np.abs(x) / q + 0.5) * q


def _by_logarithm(x, mantissa):
    with np.errstate(invalid="ignore"):
        q = 2.0 ** (np.floor(np.log2(x)) - mantissa)
    return np.rint(x / q) * q


ROUND = Exercise(
    "04-round",
    "The nearest number with M mantissa bits",
    _to_round,
    _rounded,
    [
        Wrong(
            "cut off, not rounded",
            lambda x, mantissa: np.trunc(x / _spacing(x, mantissa)) * _spacing(x, mantissa),
            "the digits behind are dropped; go to the nearest number, which may be the one above",
        ),
        Wrong(
            "half away from zero",
            _half_up,
            "a tie goes to the even neighbour, not always up, so that errors do not pile up "
            "on one side; np.rint does that",
        ),
        Wrong(
            "half up",
            lambda x, mantissa: np.floor(x / _spacing(x, mantissa) + 0.5) * _spacing(x, mantissa),
            "floor(… + ½) takes every tie up; a tie goes to the even neighbour, and np.rint "
            "does that",
        ),
        Wrong(
            "the logarithm of a negative number",
            _by_logarithm,
            "a negative number has no logarithm; take the exponent of |x|",
        ),
        Wrong(
            "one grid for all",
            lambda x, mantissa: np.rint(x * 2**mantissa) / 2**mantissa,
            "the spacing is 2^−M only from 1 to 2; it doubles with each power of two, so it "
            "needs the exponent of x",
        ),
        Wrong(
            "a bit too few",
            lambda x, mantissa: _rounded(x, mantissa - 1),
            "M bits behind the hidden 1 are M + 1 digits in all; the spacing is 2^(e − M) "
            "with 2^e ≤ |x| < 2^(e+1)",
        ),
        Wrong(
            "a bit too many",
            lambda x, mantissa: _rounded(x, mantissa + 1),
            "this keeps M + 1 bits behind the hidden 1; the spacing is 2^(e − M) with 2^e ≤ "
            "|x| < 2^(e+1)",
        ),
    ],
    tolerance=1e-12,
)


# -------------------------------------------------------------------------------------------- weigh


def _model(rng):
    return (
        int(rng.integers(1, 80)) * 10**9,
        int(rng.choice([4, 8, 16])),
        int(rng.choice([32, 64, 128])),
        int(rng.choice([8, 16, 32])),
    )


def _gigabytes(parameters, bits, block, scale_bits):
    return parameters * (bits + scale_bits / block) / 8 / 1e9


WEIGH = Exercise(
    "04-weigh",
    "What a model weighs",
    _model,
    _gigabytes,
    [
        Wrong(
            "bits taken for bytes",
            lambda n, bits, block, scale: 8 * _gigabytes(n, bits, block, scale),
            "that is in gigabits; eight bits are one byte",
        ),
        Wrong(
            "the scales forgotten",
            lambda n, bits, block, scale: n * bits / 8 / 1e9,
            "the numbers alone; each block of `block` numbers brings `scale_bits` more",
        ),
        Wrong(
            "a scale for each number",
            lambda n, bits, block, scale: n * (bits + scale) / 8 / 1e9,
            "a whole block shares one scale, so it adds scale_bits/block bits to each number",
        ),
        Wrong(
            "GiB instead of GB",
            lambda n, bits, block, scale: _gigabytes(n, bits, block, scale) * 1e9 / 2**30,
            "you divide by 2^30, which gives GiB; a GB is 10^9 bytes",
        ),
        Wrong(
            "bytes instead of gigabytes",
            lambda n, bits, block, scale: _gigabytes(n, bits, block, scale) * 1e9,
            "these are bytes; divide by 10^9",
        ),
    ],
)


# ------------------------------------------------------------------------------------------- add up


def _terms(rng):
    return (rng.uniform(0.3, 1.7, size=700).astype(np.float16),)


def _kahan(numbers, *, sign=-1, debt=lambda new, total, y: (new - total) - y):
    total = owed = np.float16(0)
    for x in numbers:
        y = x + np.float16(sign) * owed
        new = total + y
        owed = debt(new, total, y)
        total = new
    return total


def _compared_with_x(numbers):
    total = owed = np.float16(0)
    for x in numbers:
        new = total + (x - owed)
        owed = (new - total) - x
        total = new
    return total


def _overwritten(numbers):
    total = owed = np.float16(0)
    with np.errstate(over="ignore", invalid="ignore"):
        for x in numbers:
            y = x - owed
            total = total + y
            owed = (total - total) - y
    return total


KAHAN = Exercise(
    "04-kahan",
    "A sum that remembers what it lost",
    _terms,
    _kahan,
    [
        Wrong(
            "a plain sum",
            lambda numbers: _kahan(numbers, debt=lambda new, total, y: np.float16(0)),
            "what each addition loses is still lost; keep owed = (new − total) − y and take "
            "it off the next term",
        ),
        Wrong(
            "owed added instead of taken off",
            lambda numbers: _kahan(numbers, sign=1),
            "owed is what was added too much (negative if too little), so take it off: y = x "
            "− owed",
        ),
        Wrong(
            "the total kept in fp32",
            lambda numbers: np.float32(numbers.astype(np.float32).sum()),
            "that is a good cure, too, but here every number must fit 16 bits: keep total and "
            "owed as np.float16",
        ),
        Wrong(
            "the brackets moved",
            lambda numbers: _kahan(numbers, debt=lambda new, total, y: (new - y) - total),
            "new − y is rounded itself; new − total is exact, so subtract the total first: "
            "(new − total) − y",
        ),
        Wrong(
            "the old total overwritten",
            _overwritten,
            "you need the total from before the addition: keep it until owed is computed, and "
            "put the sum into `new`",
        ),
        Wrong(
            "compared with x",
            _compared_with_x,
            "what you have added is y, not x; owed = (new − total) − y",
        ),
    ],
    tolerance=1e-6,
)


# -------------------------------------------------------------------------------------------- scale


def _weather(rng):
    flags = [bool(f) for f in rng.random(40) > 0.1]
    return [True] * 7 + [False, True, True, False] + [True] * 7 + flags, 3


def _next_scale(scale, calm, finite, interval, *, reset=True, after=True, patience=0, back=0.5):
    """The reference, and by its switches the ways to get it wrong."""
    if not finite:
        return scale * back, 0 if reset else calm
    calm += 1
    if interval and calm >= (patience or interval):
        return scale * 2, 0 if after else calm
    return scale, calm


def _run_scales(answer, flags, interval):
    scale, calm, scales = 2.0**16, 0, []
    for finite in flags:
        scale, calm = answer(scale, calm, finite, interval)
        scales.append(float(scale))
    return [float(np.log2(s)) for s in scales]


SCALE = Exercise(
    "04-scale",
    "The next loss scale",
    _weather,
    _next_scale,
    [
        Wrong(
            "it never grows",
            lambda s, c, f, i: _next_scale(s, c, f, 0),
            "after `interval` good steps in a row the scale doubles, to find out whether "
            "there is room again",
        ),
        Wrong(
            "it grows at every good step",
            lambda s, c, f, i: _next_scale(s, c, f, i, patience=1),
            "doubling waits for `interval` good steps in a row; count them in `calm`",
        ),
        Wrong(
            "it grows a step late",
            lambda s, c, f, i: _next_scale(s, c, f, i, patience=i + 1),
            "this step is a good one, too: compare calm + 1 with `interval`",
        ),
        Wrong(
            "the count goes on after an overflow",
            lambda s, c, f, i: _next_scale(s, c, f, i, reset=False),
            "good steps must come in a row; an overflow sets calm back to 0",
        ),
        Wrong(
            "the count goes on after growing",
            lambda s, c, f, i: _next_scale(s, c, f, i, after=False),
            "after doubling start counting from 0 again, else it doubles at every step from "
            "then on",
        ),
        Wrong(
            "an overflow changes nothing",
            lambda s, c, f, i: _next_scale(s, c, f, i, back=1.0),
            "if a gradient is not finite, the scale was too large: halve it",
        ),
    ],
    run=_run_scales,
)


EXERCISES = [DECODE, ROUND, WEIGH, KAHAN, SCALE]
