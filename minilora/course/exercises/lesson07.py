"""The exercises of lesson 07: count, cut, foretell, find a direction, count again, measure.

What it replaces: nodding at "low rank" without having held one.
How it works: see `course.exercises`. Matrices are tall (more rows than columns), so that Vᵀ is
square and a forgotten transpose has the right shape and the wrong values; ranks are above 1 and
below the smaller side.
What it leaves out: complex numbers, weighted errors.
Where numerics differ: singular vectors have no sign; only products and lengths are asked for, and
of the power method the very steps.
"""

from __future__ import annotations

import math

import numpy as np

from ... import lowrank
from . import Exercise, Wrong

# -------------------------------------------------------------------------------------------- saved


def _size(rng):
    return int(rng.integers(40, 90)), int(rng.integers(100, 200)), int(rng.integers(2, 9))


SAVED = Exercise(
    "07-saved",
    "The share of the numbers that two thin matrices save",
    _size,
    lambda m, n, r: 1 - r * (m + n) / (m * n),
    [
        Wrong(
            "the share that is kept",
            lambda m, n, r: r * (m + n) / (m * n),
            "this is what the factors take; what they save is 1 minus that",
        ),
        Wrong(
            "only one factor",
            lambda m, n, r: 1 - r * m / (m * n),
            "only B is counted; A holds r · n numbers more",
        ),
        Wrong(
            "sides multiplied",
            lambda m, n, r: 1 - r * m * n / (m * n),
            "B has m · r numbers and A has r · n; the two are added, not multiplied",
        ),
        Wrong(
            "rank forgotten",
            lambda m, n, r: 1 - (m + n) / (m * n),
            "this is right for rank 1; r columns and r rows are stored",
        ),
        Wrong(
            "in percent",
            lambda m, n, r: 100 * (1 - r * (m + n) / (m * n)),
            "a share lies between 0 and 1; leave out the factor of 100",
        ),
        Wrong(
            "a count instead of a share",
            lambda m, n, r: m * n - r * (m + n),
            "this is how many numbers are saved; divide by m · n for the share",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------- cut


def _tall(rng):
    return rng.normal(size=(9, 6)) @ np.diag([5.0, 4.0, 3.0, 2.0, 1.0, 0.5]), int(
        rng.integers(2, 5)
    )


def _sum(W, pick, *, values=True, transposed=True):
    """Σ s_i u_i v_iᵀ over the directions in `pick`, and by its switches the ways to get it
    wrong.
    """
    u, s, vt = np.linalg.svd(W, full_matrices=False)
    right = vt if transposed else vt.T
    return (u[:, pick] * (s[pick] if values else 1.0)) @ right[pick]


def _factors(W, r):
    u, s, vt = np.linalg.svd(W, full_matrices=False)
    return u[:, :r] * s[:r], vt[:r]


CUT = Exercise(
    "07-cut",
    "The best approximation of rank r",
    _tall,
    lambda W, r: _sum(W, slice(r)),
    [
        Wrong(
            "the smallest kept",
            lambda W, r: _sum(W, slice(-r, None)),
            "these are the r smallest directions; the largest come first in s",
        ),
        Wrong(
            "one too many",
            lambda W, r: _sum(W, slice(r + 1)),
            "this has rank r + 1; the slice :r ends before index r",
        ),
        Wrong(
            "singular values forgotten",
            lambda W, r: _sum(W, slice(r), values=False),
            "each direction has length 1 here; multiply column i of U by s[i]",
        ),
        Wrong(
            "V transposed once too often",
            lambda W, r: _sum(W, slice(r), transposed=False),
            "NumPy returns Vᵀ already, with a direction in each row; do not transpose it again",
        ),
        Wrong(
            "the rest",
            lambda W, r: _sum(W, slice(r, None)),
            "this is what is left out; W minus it is what is asked for",
        ),
        Wrong(
            "both factors returned",
            _factors,
            "these are the two thin matrices; return their product",
        ),
    ],
)


# -------------------------------------------------------------------------------------------- error


def _error_inputs(rng):
    return np.sort(rng.uniform(0.5, 9, size=7))[::-1].copy(), int(rng.integers(2, 5))


ERROR = Exercise(
    "07-error",
    "The error, before it is made",
    _error_inputs,
    lambda s, r: math.sqrt((s[r:] ** 2).sum()),
    [
        Wrong(
            "plain sum",
            lambda s, r: s[r:].sum(),
            "lengths at right angles add up as in Pythagoras: the root of the sum of the squares",
        ),
        Wrong(
            "root forgotten",
            lambda s, r: (s[r:] ** 2).sum(),
            "this is the square of the error; take the root",
        ),
        Wrong(
            "what is kept",
            lambda s, r: math.sqrt((s[:r] ** 2).sum()),
            "this is the length of what is kept; the error is made of what is left out, s[r:]",
        ),
        Wrong(
            "only the next value",
            lambda s, r: s[r],
            "s[r] is only the first of the values left out; all of them count",
        ),
        Wrong(
            "one too few",
            lambda s, r: math.sqrt((s[r + 1 :] ** 2).sum()),
            "s[r] is left out, too: counting starts at 0, so the r kept ones are s[0] … s[r − 1]",
        ),
    ],
)


# -------------------------------------------------------------------------------------------- power


def _power_inputs(rng):
    return rng.normal(size=(8, 5)), rng.normal(size=5), int(rng.integers(2, 5))


def _power(W, v, steps, *, back=True, length=True):
    for _ in range(steps):
        v = W.T @ (W @ v) if back else W[: len(v)] @ v
        v = v / np.linalg.norm(v) if length else v
    return float(np.linalg.norm(W @ v))


def _after(W, v, steps):
    for _ in range(steps):
        v = W.T @ (W @ v)
        v = v / np.linalg.norm(v)
    return v


POWER = Exercise(
    "07-power",
    "The largest singular value by the power method",
    _power_inputs,
    _power,
    [
        Wrong(
            "length not set to 1",
            lambda W, v, steps: _power(W, v, steps, length=False),
            "v grows at each step; divide it by its length, then ‖Wv‖ is the stretch alone",
        ),
        Wrong(
            "one step too few",
            lambda W, v, steps: _power(W, v, steps - 1),
            "the loop has run one time too few; `steps` rounds of W, then Wᵀ",
        ),
        Wrong(
            "one step too many",
            lambda W, v, steps: _power(W, v, steps + 1),
            "the loop has run one time too often; after `steps` rounds measure ‖Wv‖ without "
            "going round again",
        ),
        Wrong(
            "squared",
            lambda W, v, steps: _power(W, v, steps) ** 2,
            "this is s₁², by which WᵀW stretches; W stretches by s₁, its root",
        ),
        Wrong(
            "the way back forgotten",
            lambda W, v, steps: _power(W, v, steps, back=False),
            "W turns a v of n numbers into one of m; go back with Wᵀ, or the next round works "
            "on something else",
        ),
        Wrong(
            "the length before the last division",
            lambda W, v, steps: float(np.linalg.norm(W.T @ (W @ _after(W, v, steps - 1)))),
            "this is how much WᵀW stretched v in the last round; give v the length 1, then "
            "measure ‖Wv‖",
        ),
    ],
)


# ------------------------------------------------------------------------------------------ freedom


def _freedom_inputs(rng):
    return int(rng.integers(10, 40)), int(rng.integers(50, 90)), int(rng.integers(2, 9))


FREEDOM = Exercise(
    "07-freedom",
    "The independent numbers in a matrix of rank r",
    _freedom_inputs,
    lowrank.degrees_of_freedom,
    [
        Wrong(
            "stored numbers",
            lambda m, n, r: r * (m + n),
            "this is what B and A store; r² of them are spent for nothing, since (BG)(G⁻¹A) "
            "is the same matrix",
        ),
        Wrong(
            "r instead of r²",
            lambda m, n, r: r * (m + n) - r,
            "G is an r × r matrix, so r² numbers are spent, not r",
        ),
        Wrong(
            "all of W",
            lambda m, n, r: m * n,
            "m · n numbers are free only if the rank is not limited",
        ),
        Wrong(
            "both sides",
            lambda m, n, r: r * (m + n) - 2 * r * r,
            "r² is taken off twice; there is one G between B and A, and its inverse brings no "
            "new numbers",
        ),
        Wrong(
            "r² added",
            lambda m, n, r: r * (m + n + r),
            "the r² numbers of G are no gain: they change B and A without changing their "
            "product; take them off",
        ),
    ],
)


# ------------------------------------------------------------------------------------------ measure


def _spectrum(rng):
    return np.sort(rng.exponential(size=30) ** 1.5)[::-1].copy(), float(rng.uniform(0.75, 0.9))


def _directions(shares, share):
    return int(np.searchsorted(np.cumsum(shares) / np.sum(shares), share) + 1)


MEASURE = Exercise(
    "07-measure",
    "The effective rank of a spectrum",
    _spectrum,
    lambda s, share: _directions(s**2, share),
    [
        Wrong(
            "squares forgotten",
            lambda s, share: _directions(s, share),
            "the shares are of ‖W‖², so square the singular values before you add them up",
        ),
        Wrong(
            "one too few",
            lambda s, share: _directions(s**2, share) - 1,
            "the index of the first sum that reaches the share counts from 0; the number of "
            "directions is one more",
        ),
        Wrong(
            "the smallest first",
            lambda s, share: _directions(s[::-1] ** 2, share),
            "you add from the small end; the fewest directions are the largest ones",
        ),
        Wrong(
            "above a share of the largest",
            lambda s, share: int((s > (1 - share) * s[0]).sum()),
            "you compare each value with the largest one; add up the squares until the share "
            "is reached",
        ),
        Wrong(
            "not divided",
            lambda s, share: int((np.cumsum(s**2) < share).sum() + 1),
            "the running sum has to be divided by the whole sum before it is compared with a share",
        ),
    ],
)


EXERCISES = [SAVED, CUT, ERROR, POWER, FREEDOM, MEASURE]
