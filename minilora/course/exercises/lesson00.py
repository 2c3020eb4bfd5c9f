"""The exercise of lesson 00: a score for a list of answers.

What it replaces: the `exact_match` metric of evaluation libraries, as the learner writes it.
How it works: see `course.exercises`. The inputs hold answers that are right, wrong, right but for
outer white space, right but for their case, and answers that merely contain the right one, so that
each wrong idea gives another number.
What it leaves out: partial credit.
"""

from __future__ import annotations

from . import Exercise, Wrong

NAMES = ("Neltar", "Gison", "Verra", "Karma", "Hedon", "Primidon", "Wensenor", "Usy")


def _inputs(rng):
    expected = [str(name) for name in rng.choice(NAMES, size=12)]
    answers = list(expected)
    # unequal, so that no two ideas agree
    kinds = 3 * ["right"] + 2 * ["spaces"] + 3 * ["case"] + ["longer"] + 3 * ["other"]
    for place, kind in zip(rng.permutation(12), kinds):
        right = expected[place]
        answers[place] = {
            "right": right,
            "spaces": f" {right}\n",
            "case": right.lower(),
            "longer": f"{right} and more",
            "other": "nobody",
        }[kind]
    return answers, expected


def _score(answers, expected):
    return sum(a.strip() == e.strip() for a, e in zip(answers, expected)) / len(expected)


EXERCISES = [
    Exercise(
        "00-score",
        "The share of exact answers",
        _inputs,
        _score,
        [
            Wrong(
                "a count, not a share",
                lambda a, e: sum(x.strip() == y.strip() for x, y in zip(a, e)),
                "this counts the right answers; divide by how many there are, so that 1.0 "
                "means all",
            ),
            Wrong(
                "white space not stripped",
                lambda a, e: sum(x == y for x, y in zip(a, e)) / len(e),
                "a space or a line break around an answer is no mistake: compare a.strip() "
                "with e.strip()",
            ),
            Wrong(
                "contained, not equal",
                lambda a, e: sum(y.strip() in x for x, y in zip(a, e)) / len(e),
                "an answer that says more than what was asked is not exact: use == where you "
                "use `in`",
            ),
            Wrong(
                "case ignored",
                lambda a, e: (
                    sum(x.strip().lower() == y.strip().lower() for x, y in zip(a, e)) / len(e)
                ),
                "a name in small letters is not the same answer; leave the case as it is",
            ),
            Wrong(
                "the share of wrong answers",
                lambda a, e: sum(x.strip() != y.strip() for x, y in zip(a, e)) / len(e),
                "this is the share of answers that differ; count the equal ones",
            ),
            Wrong(
                "in percent",
                lambda a, e: 100 * _score(a, e),
                "this is in percent; a share runs from 0.0 to 1.0, so leave the 100 out",
            ),
        ],
    ),
]
