"""The exercises of the lessons: what is asked, the right answer, and the wrong answers that people
really give.

What it replaces: asserts in a notebook, which say "wrong" but not why, and which nobody proves.
How it works: `lessonNN.py`, or a folder `lessonNN/` where one file would be long, holds
`EXERCISES`, a list of `Exercise`. `check` runs the learner's function, the reference and, if they
differ, the named wrong answers on the same inputs; the wrong answer that gives the learner's very
numbers is the likeliest mistake. The tests prove of each exercise that the notebook's solution
passes, that the stub waits, and that at least three wrong answers are called by their names.
What it leaves out: marks and logins.
Where numerics differ: a float is right within `tolerance`, relative to the largest reference value;
integers, booleans and strings are right only if equal.

To add an exercise as a lesson's author:

1. In `minilora/course/exercises/lessonNN.py` (make it if need be), here with NN = 08:

       from . import Exercise, Wrong

       def _inputs(rng):  # the arguments of the learner's function, fresh for each case
           A, B = rng.normal(size=(2, 7)), rng.normal(size=(5, 2))
           return A, B, 6.0, 2  # where no wrong answer can hide: A and B are not zero, alpha is
                                # not the rank, and d_in is not d_out

       def _delta(A, B, alpha, rank):  # the reference
           return alpha / rank * B @ A

       EXERCISES = [
           Exercise("08-delta", "The update from its factors", _inputs, _delta, [
               Wrong("alpha instead of alpha / r",
                     lambda A, B, alpha, rank: alpha * B @ A,
                     "you scale by α; the scale is α/r, so that the size of the update does not "
                     "depend on the rank"),
               Wrong("factors swapped", lambda A, B, alpha, rank: alpha / rank * A.T @ B.T, "…"),
               Wrong("scale forgotten", lambda A, B, alpha, rank: B @ A, "…"),
           ]),
       ]

2. In the notebook four cells. The stub (tag `exercise`) defines the function and raises
   NotImplementedError; the check (tag `check`) is `check.exercise("08-delta", delta)`, alone; the
   solution (tag `solution`, `"jupyter": {"source_hidden": true}`, `"cellView": "form"`) defines the
   same function and needs no other cell than the setup cell; then the lesson goes on with it. The
   markdown cell before the stub says the difficulty and the minutes and hides hints in `<details>`.

If the answer is no plain function (a class, a generator), give `run=`, which calls it:
`run=lambda answer, x: answer(4, 3).step(x)`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import MiniloraError


@dataclass(frozen=True)
class Wrong:
    """A wrong answer that people give: its name, the function that gives it, and the hint that puts
    it right.
    """

    name: str
    answer: Callable
    hint: str


def _call(answer: Callable, *arguments: Any) -> Any:
    return answer(*arguments)


@dataclass(frozen=True)
class Exercise:
    """One exercise of a lesson.

    id: `NN-short-name`, NN being the lesson. inputs: takes a `numpy.random.Generator`, returns the
    tuple of arguments. reference: the right answer. wrong: at least three. run: how to call an
    answer. tolerance: relative, for floats. cases: how many random inputs are tried.
    """

    id: str
    title: str
    inputs: Callable[..., tuple]
    reference: Callable
    wrong: Sequence[Wrong] = field(default_factory=tuple)
    run: Callable = _call
    tolerance: float = 1e-5
    cases: int = 3


def lesson(number: str) -> list[Exercise]:
    """All exercises of a lesson given as two digits; an empty list if it has none yet."""
    name = f"{__name__}.lesson{number}"
    try:
        return list(importlib.import_module(name).EXERCISES)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return []


def find(identity: str) -> Exercise:
    """The exercise with this id. Raises MiniloraError, which lists the ids of that lesson, if there
    is none.
    """
    number = re.match(r"(\d\d)-", str(identity))
    known = lesson(number.group(1)) if number else []
    for exercise in known:
        if exercise.id == identity:
            return exercise
    listed = ", ".join(exercise.id for exercise in known) or "none"
    raise MiniloraError(f"there is no exercise {identity!r}; this lesson has: {listed}")
