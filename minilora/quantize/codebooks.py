"""Code books: the few values that a quantized number may take, and where those values come from.

What it replaces: the tables `get_4bit_type` and `create_dynamic_map` of bitsandbytes, which write
the sixteen numbers of NF4 down; here they are computed, from the normal distribution and the
standard library alone.
How it works: a code book is a list of 2^bits levels in [-1, 1], addressed by index. Encoding looks
for the nearest level, which for sorted levels is the same as counting the midpoints that lie below
the number.
What it leaves out: learned code books (k-means) and vector quantization; hand in any levels with
`custom`.
Where numerics differ: nowhere for NF4, FP4 and the dynamic map, which equal bitsandbytes' fp32
tables bit for bit.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from ..errors import MiniloraError


@dataclass(frozen=True, eq=False)
class CodeBook:
    """The levels of a code by index, and the same sorted, with the thresholds between neighbours.

    `order[rank]` is the index of the level that is `rank`-th from below; `thresholds[i]` lies
    between ranks i and i + 1.
    """

    name: str
    bits: int
    levels: np.ndarray
    order: np.ndarray = field(init=False)
    thresholds: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        order = _sorted_order(self.levels)
        ranked = self.levels[order]
        middle = (ranked[:-1] + ranked[1:]) / np.float32(2)  # fp32, as the reference computes it
        for name, value in (("order", order.astype(np.uint8)), ("thresholds", middle)):
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        self.levels.flags.writeable = False

    @functools.cached_property
    def is_sorted(self) -> bool:
        """Whether index and rank are the same, as in NF4 but not in FP4."""
        return bool((self.order[:-1] < self.order[1:]).all())

    @functools.cached_property
    def pairs(self) -> np.ndarray:
        """For each byte the two levels of its halves, the higher half first, as the bits of one
        64-bit number.
        """
        levels = np.zeros(16, dtype=np.float32)
        levels[: self.levels.size] = self.levels
        return (
            np.stack([np.repeat(levels, 16), np.tile(levels, 16)], axis=1)
            .view(np.float64)
            .reshape(-1)
        )

    @property
    def zero(self) -> int:
        """The index that the number 0 gets."""
        return int(self.order[np.searchsorted(self.thresholds, np.float32(0), side="left")])


def _sorted_order(levels: np.ndarray) -> np.ndarray:
    """Indices from the lowest to the highest level; of equal levels (FP4 has two zeros) the lower
    index comes first.
    """
    return np.argsort(levels, kind="stable")


@functools.cache
def nf4_levels() -> np.ndarray:
    """The sixteen values of NormalFloat 4 (QLoRA, section 3): quantiles of the normal distribution,
    scaled to [-1, 1].

    Eight quantiles above zero, seven below, and zero itself, so that zero is exact. The outermost
    probability is not 1 (its quantile is infinite) but halfway between the ends of the paper's two
    half-grids of 16 and 15 steps.
    """
    # = 1 - (1/32 + 1/30)/2, to the seven digits that the reference was computed with
    outermost = 0.9677083
    above = [NormalDist().inv_cdf(float(p)) for p in _linspace(outermost, 0.5, 9)[:-1]]
    below = [-NormalDist().inv_cdf(float(p)) for p in _linspace(outermost, 0.5, 8)[:-1]]
    values = np.array(sorted(above + [0.0] + below), dtype=np.float32)
    return values / values.max()


def _linspace(start: float, stop: float, count: int) -> np.ndarray:
    """torch.linspace in fp32: an fp32 step, walked from both ends to the middle, each point rounded
    to fp32 once.
    """
    first, last = np.float32(start), np.float32(stop)
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    points = np.where(index < count // 2, first + step * index, last - step * (count - 1 - index))
    return points.astype(np.float32)


@functools.cache
def fp4_levels() -> np.ndarray:
    """The sixteen values of bitsandbytes' FP4: sign, two bits of exponent, one of mantissa, divided
    by the largest (12).

    Index 1 would be the subnormal 0.5 in E2M1; here it is 0.0625, i.e. one sixteenth.
    """
    positive = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
    return np.array([v / 12 for v in positive] + [0.0 - v / 12 for v in positive], dtype=np.float32)


@functools.cache
def integer_levels(bits: int) -> np.ndarray:
    """-2^(b-1) ... 2^(b-1) - 1, divided by the largest: symmetric absmax integers. The lowest level
    is never used.
    """
    half = 2 ** (bits - 1)
    return (np.arange(-half, half, dtype=np.float64) / max(half - 1, 1)).astype(np.float32)


@functools.cache
def dynamic_levels(signed: bool = True) -> np.ndarray:
    """The 256 values of the dynamic 8-bit code (Dettmers 2015, arXiv:1511.04561), in rising order.

    Seven decades, 1e-6 to 1; the i-th holds 2^i means of neighbouring points of an even grid from
    0.1 to 1, on both sides of zero. Zero and one complete it, so the lowest value is -0.993 and the
    highest 1. The unsigned code, for numbers that are never negative, spends the sign's bit on
    twice as many means in each decade.
    """
    values = [0.0, 1.0]
    for i in range(7):
        grid = _linspace(0.1, 1.0, (1 if signed else 2) * 2**i + 1)
        means = (grid[:-1] + grid[1:]) / np.float32(2)
        for sign in (1.0, -1.0) if signed else (1.0,):
            values += (means * np.float32(sign * 10.0 ** (i - 6))).tolist()
    return np.array(sorted(values), dtype=np.float32)


def custom(levels) -> CodeBook:
    """A code book of your own: 2 to 256 finite levels, the largest magnitude at most 1 for absmax
    scaling to fit.
    """
    levels = np.array(levels, dtype=np.float32).reshape(-1)
    if not 2 <= levels.size <= 256:
        raise MiniloraError(
            f"a code book of {levels.size} levels does not fit 1 to 8 bits; hand in 2 to 256 levels"
        )
    if not np.isfinite(levels).all():
        raise MiniloraError("the code book holds NaN or infinity; hand in finite levels")
    return CodeBook("custom", max(1, math.ceil(math.log2(levels.size))), levels)


NAMES = ("nf4", "fp4", "dynamic8", *(f"int{bits}" for bits in range(2, 9)))


@functools.cache
def named(name: str) -> CodeBook:
    """The code book of that name. Raises MiniloraError, with the names there are, for any other."""
    if name == "nf4":
        return CodeBook(name, 4, nf4_levels())
    if name == "fp4":
        return CodeBook(name, 4, fp4_levels())
    if name == "dynamic8":
        return CodeBook(name, 8, dynamic_levels())
    if name in NAMES:
        return CodeBook(name, int(name[3:]), integer_levels(int(name[3:])))
    raise MiniloraError(
        f"unknown code {name!r}; known are {', '.join(NAMES)}, or hand in an array of levels"
    )
