"""The exercises of lesson 06: round by rows, multiply in integers, find outliers, split the
product, make outliers.

What it replaces: reading bitsandbytes' kernels to find out what LLM.int8() does.
How it works: see `course.exercises`. All numbers are eighths, so that fp16 holds them and the
answers equal the package's to the bit; some lie halfway between two codes, some exactly on the
threshold; outlier columns hold the largest of the remaining numbers of some row.
What it leaves out: fp16 rounding, rows of zeros.
Where numerics differ: codes are right only if equal, products within the tolerance.
"""

from __future__ import annotations

import numpy as np

from . import Exercise, Wrong

# --------------------------------------------------------------------------------------------- rows


def _halves(rng):
    """W (4, 6) whose rows have the maxima 127, 63.5 and so on, with values halfway between two
    codes.
    """
    codes = rng.integers(-120, 120, size=(4, 6)) + rng.choice([0.0, 0.5], size=(4, 6))
    codes[:, 0], codes[:, 1] = 2.5, rng.choice([-4.5, 6.5])
    codes[np.arange(4), rng.integers(2, 6, size=4)] = rng.choice([-127.0, 127.0], size=4)
    return (codes * np.array([[1.0], [0.5], [2.0], [0.25]]),)


def _rows(W, *, axis=1, top=127, rounding=np.rint):
    scale = np.abs(W).max(axis=axis, keepdims=axis is not None)
    codes = rounding(W * top / scale).astype(np.int64)
    return codes, np.ravel(scale)


ROWS = Exercise(
    "06-rows",
    "A matrix in int8, row by row",
    _halves,
    _rows,
    [
        Wrong(
            "one scale for all",
            lambda W: (_rows(W, axis=None)[0], np.repeat(np.abs(W).max(), len(W))),
            "each row has a maximum of its own: np.abs(W).max(axis=1, keepdims=True)",
        ),
        Wrong(
            "columns instead of rows",
            lambda W: _rows(W, axis=0),
            "axis=0 runs down the columns; the maximum of a row runs along axis=1",
        ),
        Wrong(
            "128 steps",
            lambda W: _rows(W, top=128),
            "the largest magnitude becomes 127; 128 does not fit into int8",
        ),
        Wrong(
            "cut off instead of rounded",
            lambda W: _rows(W, rounding=np.trunc),
            "astype(int) cuts off; round first, with np.rint",
        ),
        Wrong(
            "half rounded up",
            lambda W: _rows(W, rounding=lambda v: np.floor(v + 0.5)),
            "2.5 becomes 3 here; np.rint rounds halves to the even neighbour, as bitsandbytes does",
        ),
        Wrong(
            "sign of the largest lost",
            lambda W: _rows_signed(W),
            "the row's largest number may be negative; take the maximum of the magnitudes, np.abs",
        ),
        Wrong(
            "the step instead of the scale",
            lambda W: (_rows(W)[0], _rows(W)[1] / 127),
            "the codes are right; but what is stored here is the row's largest magnitude "
            "itself, not the step, which is its 127th part",
        ),
    ],
)


def _rows_signed(W):
    scale = W.max(axis=1, keepdims=True)
    return np.rint(W * 127 / scale).astype(np.int64), scale[:, 0]


# ------------------------------------------------------------------------------------------ product


def _codes(rng):
    signs = rng.choice([-1, 1], size=6)
    # sums beyond 127
    a, b = rng.integers(20, 128, size=(3, 6)) * signs, rng.integers(20, 128, size=(5, 6)) * signs
    return (
        a.astype(np.int8),
        rng.uniform(0.5, 4, size=3),
        b.astype(np.int8),
        rng.uniform(0.5, 4, size=5),
    )


def _whole(a, b):
    return a.astype(np.int64) @ b.astype(np.int64).T


PRODUCT = Exercise(
    "06-product",
    "A product in integers, scaled once",
    _codes,
    lambda a, s, b, t: _whole(a, b) * np.outer(s, t) / 127**2,
    [
        Wrong(
            "int8 wraps round",
            lambda a, s, b, t: (a @ b.T) * np.outer(s, t) / 127**2,
            "NumPy adds int8 in int8, which wraps round at 127; turn the codes into a wider "
            "type before the product",
        ),
        Wrong(
            "127 once",
            lambda a, s, b, t: _whole(a, b) * np.outer(s, t) / 127,
            "both factors were multiplied by 127, so the product is too large by 127²",
        ),
        Wrong(
            "no 127 at all",
            lambda a, s, b, t: _whole(a, b) * np.outer(s, t),
            "a code stands for code · scale / 127, in both factors",
        ),
        Wrong(
            "only the scale of x",
            lambda a, s, b, t: _whole(a, b) * s[:, None] / 127,
            "the rows of W have scales of their own: column j of the result is multiplied by "
            "t[j], too",
        ),
        Wrong(
            "only the scale of W",
            lambda a, s, b, t: _whole(a, b) * t / 127,
            "the rows of x have scales of their own: row i of the result is multiplied by "
            "s[i], too",
        ),
        Wrong(
            "scales divided",
            lambda a, s, b, t: _whole(a, b) / np.outer(s, t) / 127**2,
            "to encode one divides by the scale, to decode one multiplies",
        ),
    ],
)


# ----------------------------------------------------------------------------------------- outliers


def _features(rng):
    """x (5, 8) in eighths below 4; columns with a negative outlier, one exactly on the threshold, a
    single one, two huge ones.
    """
    x = rng.integers(-31, 32, size=(5, 8)) / 8
    low, edge, one, huge = rng.permutation(8)[:4]
    x[1, low], x[:, edge], x[rng.integers(2, 5), one] = -9.5, -np.abs(x[:, edge]), 7.25
    x[0, edge], x[3, huge], x[4, huge] = 6.0, 30.0, -30.0
    return x, 6.0


OUTLIERS = Exercise(
    "06-outliers",
    "The columns that hold an outlier",
    _features,
    lambda x, threshold: np.flatnonzero((np.abs(x) >= threshold).any(axis=0)),
    [
        Wrong(
            "more than instead of at least",
            lambda x, threshold: np.flatnonzero((np.abs(x) > threshold).any(axis=0)),
            "a value of exactly the threshold counts as an outlier: use >=",
        ),
        Wrong(
            "magnitude forgotten",
            lambda x, threshold: np.flatnonzero((x >= threshold).any(axis=0)),
            "−9.5 is an outlier, too: compare np.abs(x)",
        ),
        Wrong(
            "rows instead of columns",
            lambda x, threshold: np.flatnonzero((np.abs(x) >= threshold).any(axis=1)),
            "these are rows (tokens); features are columns, so look down along axis=0",
        ),
        Wrong(
            "every token",
            lambda x, threshold: np.flatnonzero((np.abs(x) >= threshold).all(axis=0)),
            "one token that reaches the threshold is enough: any, not all",
        ),
        Wrong(
            "the average token",
            lambda x, threshold: np.flatnonzero(np.abs(x).mean(axis=0) >= threshold),
            "a mean hides a single large value; ask whether any token reaches the threshold",
        ),
        Wrong(
            "a mask instead of indices",
            lambda x, threshold: (np.abs(x) >= threshold).any(axis=0),
            "this is True or False for each column; np.flatnonzero gives the indices",
        ),
        Wrong(
            "places in the whole table",
            lambda x, threshold: np.flatnonzero(np.abs(x) >= threshold),
            "np.flatnonzero counts through all numbers of a table; first ask each column, "
            "with .any(axis=0)",
        ),
    ],
)


# ---------------------------------------------------------------------------------------- two parts


def _parts_inputs(rng):
    """x with outliers in two columns, whose other entries are the largest remaining ones of their
    rows; W as codes and scales.
    """
    x = rng.integers(-12, 13, size=(4, 6)) / 8
    x[:, 0] = 1.5
    first, second = rng.permutation(np.arange(1, 6))[:2]
    x[0, first], x[1, first], x[2, second], x[3, second] = -40.0, 5.5, 22.5, -4.5
    return x, rng.integers(-127, 128, size=(3, 6)), rng.uniform(0.5, 2, size=3), 6.0


def _parts(x, codes, scale, threshold, *, spread="below", zeroed=True, added=True):
    """The reference, and by its switches the ways to get it wrong."""
    large = np.abs(x) >= threshold
    columns = large.any(axis=0)
    spared = {
        "below": ~large,
        "columns": np.broadcast_to(~columns, x.shape),
        "all": np.full(x.shape, True),
    }[spread]
    s = np.where(spared, np.abs(x), 0).max(axis=1, keepdims=True)
    whole = np.clip(np.rint(x * 127 / s), -127, 127)
    if zeroed:
        whole[:, columns] = 0
    W = codes * scale[:, None] / 127
    return (whole * s / 127) @ W.T + (x[:, columns] @ W[:, columns].T if added else 0)


def _single(x, codes, scale, threshold):
    small = np.where(np.abs(x) >= threshold, 0, x)
    s = np.abs(small).max(axis=1, keepdims=True)
    W = codes * scale[:, None] / 127
    return (np.rint(small * 127 / s) * s / 127) @ W.T + (x - small) @ W.T


def _undecoded(x, codes, scale, threshold):
    columns = (np.abs(x) >= threshold).any(axis=0)
    return _parts(x, codes, scale, threshold, added=False) + x[:, columns] @ codes[:, columns].T


PARTS = Exercise(
    "06-two-parts",
    "The product in two parts",
    _parts_inputs,
    _parts,
    [
        Wrong(
            "plain int8",
            lambda *a: _parts(*a, spread="all", zeroed=False, added=False),
            "no column went apart; take the outlier columns out of the integers and add their "
            "product in floating point",
        ),
        Wrong(
            "the outliers set the scale",
            lambda *a: _parts(*a, spread="all"),
            "the row maxima still hold the outliers, so the others keep their coarse steps; "
            "leave magnitudes ≥ threshold out",
        ),
        Wrong(
            "columns counted twice",
            lambda *a: _parts(*a, zeroed=False),
            "the outlier columns are in both parts; set their codes to 0 in the integer part",
        ),
        Wrong(
            "the second part forgotten",
            lambda *a: _parts(*a, added=False),
            "the outlier columns are out of the integers, and nothing has brought them back: "
            "add x[:, columns] @ W[:, columns].T",
        ),
        Wrong(
            "whole columns left out of the maximum",
            lambda *a: _parts(*a, spread="columns"),
            "your row maximum leaves out whole columns; as in bitsandbytes only the outliers "
            "themselves are left out of it",
        ),
        Wrong(
            "single numbers instead of columns",
            _single,
            "only the outliers themselves went apart; their whole columns do, small numbers "
            "included",
        ),
        Wrong(
            "codes not decoded",
            _undecoded,
            "the floating-point part needs W itself: codes · scale / 127",
        ),
    ],
)


# -------------------------------------------------------------------------------------------- plant


def _plant_inputs(rng):
    g, W = rng.uniform(0.5, 2, size=6), rng.normal(size=(6, 6))
    return g, W, [int(c) for c in rng.permutation(6)[:2]], 16.0


def _plant(g, W, columns, factor, *, norm=1, weight=-1, rows=False):
    g, W = g.copy(), W.copy()
    g[columns] *= factor**norm
    if rows:
        W[columns] *= factor**weight
    else:
        W[:, columns] *= factor**weight
    return g, W


PLANT = Exercise(
    "06-plant",
    "Outliers that change no answer",
    _plant_inputs,
    _plant,
    [
        Wrong(
            "both multiplied",
            lambda *a: _plant(*a, weight=1),
            "the products grow by factor² in these columns; divide W by what g is multiplied by",
        ),
        Wrong(
            "the wrong way round",
            lambda *a: _plant(*a, norm=-1, weight=1),
            "the answers stay the same, but the features have become smaller: multiply g, divide W",
        ),
        Wrong(
            "rows instead of columns",
            lambda *a: _plant(*a, rows=True),
            "W is (out, in): its columns belong to the features, its rows to the outputs",
        ),
        Wrong(
            "W left as it is",
            lambda *a: _plant(*a, weight=0),
            "the outliers are there, but the layer's answers change with them; W has to undo "
            "what g does",
        ),
        Wrong(
            "every column",
            lambda g, W, columns, factor: _plant(g, W, list(range(len(g))), factor),
            "all features were scaled; only the given columns are to stand out",
        ),
    ],
)


EXERCISES = [ROWS, PRODUCT, OUTLIERS, PARTS, PLANT]
