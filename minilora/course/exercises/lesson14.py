"""The exercises of lesson 14: a format for the products, a smaller batch, a loss scale, a bill.

What it replaces: finding out on a rented card, by the hour.
How it works: see `course.exercises`. The inputs hold the cases where a wrong rule and the right
one part: a T4, batches that are no powers of two, steps that a number divides which does not divide
their batch, gradients that overflow just before the factor would grow, runs whose last step is not
full, and runs whose last step is.
What it leaves out: optimizers other than AdamW; several cards.
"""

from __future__ import annotations

import math

from . import Exercise, Wrong

# ----------------------------------------------------------------------------- the type of products

# compute capabilities, None: no GPU
CARDS = (None, (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))


def _cards(rng):
    return ([CARDS[i] for i in rng.permutation(len(CARDS))],)


def _format(capability):
    if capability is None:
        return "fp32"
    return "bf16" if capability >= (8, 0) else "fp16"


def _of_each(answer, cards):
    return {str(capability): answer(capability) for capability in cards}


FORMAT = Exercise(
    "14-format",
    "The number format that a card really has",
    _cards,
    _format,
    [
        Wrong(
            "bf16 on every card",
            lambda c: "fp32" if c is None else "bf16",
            "a T4 (7, 5) has no bf16 units: torch imitates them there, slowly; below (8, 0) "
            "take fp16",
        ),
        Wrong(
            "fp16 on every card",
            lambda c: "fp32" if c is None else "fp16",
            "fp16 runs everywhere, but ends at 65504; from (8, 0) on there is bf16, which "
            "needs no loss scale",
        ),
        Wrong(
            "bf16 only above 8",
            lambda c: "fp32" if c is None else "bf16" if c > (8, 0) else "fp16",
            "an A100 is (8, 0) and has bf16: the border belongs to the cards that have it",
        ),
        Wrong(
            "16 bits on a processor",
            lambda c: "bf16" if c is None or c >= (8, 0) else "fp16",
            "most processors imitate 16-bit products; None is a processor, and there it is fp32",
        ),
        Wrong(
            "bf16 from 7 on",
            lambda c: "fp32" if c is None else "bf16" if c[0] >= 7 else "fp16",
            "7 is Volta and Turing, the V100 and the T4: fast fp16, no bf16",
        ),
    ],
    run=_of_each,
)


# ------------------------------------------------------------------------------------ the same step


def _steps(rng):
    return (
        [
            (24, 1, 9),
            (12, 2, 5),
            (16, 1, 16),
            (30, 3, 9),
            (int(rng.integers(5, 9)) * 6, 3, int(rng.integers(7, 12))),
        ],
    )


def _divisor(number, batch, most):
    return max(rows for rows in range(1, min(batch, most) + 1) if number % rows == 0)


def _smaller(batch, accumulate, most):
    fits = _divisor(batch * accumulate, batch, most)
    return fits, batch * accumulate // fits


def _of_the_batch(batch, accumulate, most):
    fits = _divisor(batch, batch, most)
    return fits, batch * accumulate // fits


def _each_step(answer, cases):
    """In words, so that 3.0 is not 3: a run takes whole numbers only."""
    told = [answer(*case) for case in cases]
    return [
        "{} rows, {} times".format(*each)
        if isinstance(each, (tuple, list)) and len(each) == 2
        else each
        for each in told
    ]


def _halved(batch, accumulate, most):
    while batch > most:
        batch, accumulate = batch // 2, accumulate * 2
    return batch, accumulate


SMALLER = Exercise(
    "14-smaller",
    "Out of memory: fewer rows at once, the same step",
    _steps,
    _smaller,
    [
        Wrong(
            "as many rows as fit",
            lambda b, a, m: (min(b, m), math.ceil(a * b / min(b, m))),
            "rows · batches must stay what it was, or the step is another one: take a divisor "
            "of the whole step",
        ),
        Wrong(
            "accumulation left as it was",
            lambda b, a, m: (_smaller(b, a, m)[0], a),
            "with fewer rows at once and no more batches the step learns from fewer rows; "
            "multiply accumulate by what you took away",
        ),
        Wrong(
            "one row at a time",
            lambda b, a, m: (1, a * b),
            "the same step, but slower than need be: take the largest divisor that fits",
        ),
        Wrong(
            "halved until it fits",
            _halved,
            "halves of odd numbers are rounded, and a larger divisor may fit: try every "
            "number of rows up to what fits",
        ),
        Wrong(
            "accumulate begun anew",
            lambda b, a, m: (_of_the_batch(b, a, m)[0], b // _of_the_batch(b, a, m)[0]),
            "the run accumulated already: multiply its number of batches, do not replace it",
        ),
        Wrong(
            "divisors of the batch alone",
            _of_the_batch,
            "the same step, but a larger number may divide all its rows: 9 does not divide "
            "30, but it divides 3 · 30",
        ),
        Wrong(
            "no whole number of batches",
            lambda b, a, m: (_smaller(b, a, m)[0], a * b / _smaller(b, a, m)[0]),
            "/ makes a float of 3: a run takes whole numbers only, so divide by //",
        ),
    ],
    run=_each_step,
)


# ----------------------------------------------------------------------------------- the loss scale


def _overflows(rng):
    every = int(rng.integers(3, 5))
    good = (
        [True] * every
        + [True] * (every - 1)
        + [False]
        + [True] * (every - 1)
        + [False, False]
        + [True] * (every + 1)
    )
    return good + [bool(b) for b in rng.random(12) < 0.8], 2.0**16, every


def _scale(finite, scale, every, *, grow=2.0, shrink=0.5, reset=True, restart=True):
    """The reference, and by its switches the ways to get it wrong."""
    row = 0
    for good in finite:
        row = row + 1 if good else 0 if reset else row
        if not good:
            scale *= shrink
        elif row >= every:
            scale *= grow
            row = 0 if restart else row
    return scale


SCALE = Exercise(
    "14-scale",
    "The factor that keeps fp16 gradients alive",
    _overflows,
    _scale,
    [
        Wrong(
            "never grows",
            lambda finite, scale, every: _scale(finite, scale, every, grow=1.0),
            "after `every` good steps in a row the factor doubles; otherwise it stays small "
            "for ever after one bad moment",
        ),
        Wrong(
            "never shrinks",
            lambda finite, scale, every: _scale(finite, scale, every, shrink=1.0),
            "an overflow must halve the factor, or the next step overflows, too",
        ),
        Wrong(
            "overflows do not begin the count anew",
            lambda finite, scale, every: _scale(finite, scale, every, reset=False),
            "the good steps must come in a row: after an overflow the count starts at 0",
        ),
        Wrong(
            "grows at each step from then on",
            lambda finite, scale, every: _scale(finite, scale, every, restart=False),
            "after doubling, the count starts at 0 again, or the factor doubles at each good "
            "step that follows",
        ),
        Wrong(
            "grows at every good step",
            lambda finite, scale, every: _scale(finite, scale, 1),
            "only `every` good steps in a row double it, not each of them",
        ),
    ],
)


# ----------------------------------------------------------------------------------------- the bill


def _runs(rng):
    # the last step not full, full, a third full
    sizes = int(rng.integers(7, 40)) * 1000 + 7, int(rng.integers(400, 2000)) * 16, 2000 + 5
    return (
        [
            (
                size,
                3,
                16,
                float(rng.uniform(20, 60)),
                float(rng.choice([65.0, 121.0, 165.0])),
                0.4,
                float(rng.uniform(0.4, 0.9)),
            )
            for size in sizes
        ],
    )


def _bill(examples, epochs, batch, flops, rate, share, price):
    steps = math.ceil(examples / batch) * epochs
    hours = steps * flops / (rate * share) / 3600
    return steps, hours, hours * price


def _for(steps, flops, rate, share, price):
    """The bill of so many steps, however they were counted."""
    return steps, *_bill(steps, 1, 1, flops, rate, share, price)[1:]


def _named(answer, cases):
    """Each number by itself: the check measures an error against the largest number beside it, and
    steps are thousands.
    """
    told = [answer(*case) for case in cases]
    return [
        dict(zip(("steps", "hours", "dollars"), each))
        if isinstance(each, (tuple, list)) and len(each) == 3
        else each
        for each in told
    ]


BILL = Exercise(
    "14-bill",
    "Steps, hours and dollars",
    _runs,
    _bill,
    [
        Wrong(
            "the data sheet's rate",
            lambda e, n, b, f, r, s, p: _bill(e, n, b, f, r, 1.0, p),
            "no training loop reaches the rate of the data sheet; divide by the share that "
            "you believe in",
        ),
        Wrong(
            "multiplied by the share",
            lambda e, n, b, f, r, s, p: _bill(e, n, b, f, r, 1 / s, p),
            "a card that is used by 40 % takes longer, not shorter: divide by the share",
        ),
        Wrong(
            "one epoch",
            lambda e, n, b, f, r, s, p: _bill(e, 1, b, f, r, s, p),
            "the examples are read `epochs` times",
        ),
        Wrong(
            "a step for each example",
            lambda e, n, b, f, r, s, p: _bill(e, n, 1, f, r, s, p),
            "a step takes `batch` examples at once, and the operations given are those of a "
            "whole step",
        ),
        Wrong(
            "the last step forgotten",
            lambda e, n, b, f, r, s, p: _bill(e // b * b, n, b, f, r, s, p),
            "the examples that fill no whole batch are a step, too: round up",
        ),
        Wrong(
            "always one step more",
            lambda e, n, b, *rest: _for((e // b + 1) * n, *rest),
            "where the examples fill every batch there is no step beside them: round up, do "
            "not add one",
        ),
        Wrong(
            "rounded once, at the end",
            lambda e, n, b, *rest: _for(math.ceil(e * n / b), *rest),
            "each epoch ends with a batch that is not full: round up first, then multiply by "
            "the epochs",
        ),
        Wrong(
            "seconds for hours",
            lambda e, n, b, f, r, s, p: (
                _bill(e, n, b, f, r, s, p)[0],
                *(3600 * x for x in _bill(e, n, b, f, r, s, p)[1:]),
            ),
            "operations / operations per second is seconds; an hour has 3600 of them",
        ),
        Wrong(
            "tflop taken for those of one example",
            lambda e, n, b, f, r, s, p: _bill(e, n, b, f * b, r, s, p),
            "the operations given are those of a whole step, all its rows together",
        ),
    ],
    run=_named,
    tolerance=1e-6,
)


EXERCISES = [FORMAT, SMALLER, SCALE, BILL]
