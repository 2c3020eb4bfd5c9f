"""The exercises of lesson 15, audit the papers: when a number reproduces, what ZeRO leaves on a
GPU, how long training takes.

What it replaces: the footnote that nobody recomputes. How it works: see `course.exercises`. What
it leaves out: activations, which depend on the model's shape; lesson 03 has them. Where numerics
differ: nowhere.
"""

from __future__ import annotations

import math

from . import Exercise, Wrong

# ------------------------------------------------------------------------------------------- digits


def _printed(rng):
    """[(printed, unit of its last digit, computed), ...]: right, cut, off by a little, off by much,
    tiny and huge.
    """
    rows = []
    for unit in (0.1, 1.0, 10.0, 0.001):
        printed = float(rng.integers(200, 900)) * unit
        shares = (0.3, -0.3, 0.8, -0.8, 4.0, -30.0, 0.0)
        rows += [(round(printed, 4), unit, round(printed + share * unit, 6)) for share in shares]
    return ([rows[i] for i in rng.permutation(len(rows))],)


def _agrees(rows):
    return [
        bool(abs(computed - printed) <= unit / 2 * (1 + 1e-9)) for printed, unit, computed in rows
    ]


DIGITS = Exercise(
    "15-digits",
    "Does a number reproduce?",
    _printed,
    _agrees,
    [
        Wrong(
            "equality",
            lambda rows: [computed == printed for printed, _, computed in rows],
            "a paper rounds; a number that differs beyond the last printed digit still reproduces",
        ),
        Wrong(
            "one whole unit",
            lambda rows: [abs(computed - printed) <= unit for printed, unit, computed in rows],
            "a whole unit of the last digit is too much: rounding moves a number by half a "
            "unit at most",
        ),
        Wrong(
            "one percent",
            lambda rows: [
                abs(computed - printed) <= abs(printed) / 100 for printed, _, computed in rows
            ],
            "you allow a share of the number; how exact it wants to be is told by its last "
            "digit, not by its size",
        ),
        Wrong(
            "cut instead of rounded",
            lambda rows: [
                math.isclose(math.floor(computed / unit + 1e-9) * unit, printed, rel_tol=1e-9)
                for printed, unit, computed in rows
            ],
            "you cut digits off, so 31.38 becomes 31.3; papers round to the nearest, here 31.4",
        ),
    ],
)


# --------------------------------------------------------------------------------------------- ZeRO


def _cluster(rng):
    return (
        float(rng.integers(2, 90)) * 0.5e9,
        int(rng.choice([3, 8, 24, 64])),
        int(rng.integers(0, 4)),
    )


def _zero(parameters, gpus, stage, *, states=12, gradients=2):
    """Bytes a GPU: 2 for the weights, 2 for the gradients, 12 for Adam's two moments and the fp32
    copy.
    """
    weights = 2 / (gpus if stage >= 3 else 1)
    grads = gradients / (gpus if stage >= 2 else 1)
    return parameters * (weights + grads + states / (gpus if stage >= 1 else 1))


def _all_stages(answer, parameters, gpus, _):
    """Every stage at once, so that a mistake in one cannot hide behind the draw."""
    return [float(answer(parameters, gpus, stage)) for stage in range(4)]


ZERO = Exercise(
    "15-zero",
    "What ZeRO leaves on a GPU",
    _cluster,
    _zero,
    [
        Wrong(
            "fp32 copy forgotten",
            lambda *a: _zero(*a, states=8),
            "Adam's two moments take 8 bytes, and mixed precision keeps an fp32 copy of the "
            "weights beside them: 12",
        ),
        Wrong(
            "gradients in fp32",
            lambda *a: _zero(*a, gradients=4),
            "the paper keeps the gradients in half precision: 2 bytes each",
        ),
        Wrong(
            "everything is split from stage 1 on",
            lambda parameters, gpus, stage: 16 * parameters / (gpus if stage else 1),
            "stage 1 splits the optimizer states alone, stage 2 the gradients, too, and only "
            "stage 3 the weights",
        ),
        Wrong("GiB instead of bytes", lambda *a: _zero(*a) / 2**30, "the answer is asked in bytes"),
    ],
    run=_all_stages,
)


# --------------------------------------------------------------------------------------------- days


def _run(rng):
    return (
        float(rng.integers(5, 500)) * 1e9,
        float(rng.integers(2, 30)) * 1e11,
        int(rng.integers(3, 2000)),
        float(rng.integers(60, 990)) * 1e12,
        float(rng.uniform(0.2, 0.6)),
    )


def _days(parameters, tokens, gpus, peak, utilisation):
    return 6 * parameters * tokens / (gpus * peak * utilisation) / 86400


DAYS = Exercise(
    "15-days",
    "How long a training takes",
    _run,
    _days,
    [
        Wrong(
            "forward pass only",
            lambda *a: _days(*a) / 3,
            "2 operations for each parameter and token are the forward pass; backward takes "
            "twice as many: 6 together",
        ),
        Wrong(
            "utilisation forgotten",
            lambda *a: _days(*a) * a[4],
            "no GPU runs at its peak; divide by peak · utilisation",
        ),
        Wrong("hours", lambda *a: _days(*a) * 24, "this is in hours; a day has 86,400 seconds"),
        Wrong(
            "one GPU",
            lambda *a: _days(*a) * a[2],
            "this is the time of a single GPU; they share the work",
        ),
    ],
)


EXERCISES = [DIGITS, ZERO, DAYS]
