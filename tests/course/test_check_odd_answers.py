"""Whatever an answer raises or returns, a check says it in one line, and the kernel goes on."""

import os
import sys

import numpy as np
import pytest
import torch
from doubling import TASK, one_line, raising

from minilora.course.check import judge
from minilora.course.exercises import Exercise

pytestmark = pytest.mark.usefixtures("short")


def recurse(x):
    return recurse(x)


def leave(x):
    os._exit(3)


class Odd(BaseException):
    def __str__(self):
        raise ValueError("no text")


class Slow(Exception):
    def __str__(self):
        while True:
            pass


@pytest.mark.parametrize(
    "answer, told",
    [
        (lambda x: exit(3), "SystemExit: 3"),
        (lambda x: sys.exit("bye"), "SystemExit: bye"),
        (leave, "SystemExit: 3"),
        (lambda x: input("x? "), "a check has nobody"),
        (recurse, "RecursionError"),
        (raising(BaseException("odd")), "BaseException: odd"),
        (raising(GeneratorExit()), "GeneratorExit"),
        (raising(Odd()), "Odd"),
        (raising(Slow()), "Slow"),
        (raising(ValueError("x" * 10**7)), "ValueError: xxx"),
        (raising(ValueError("a\nb")), "ValueError: a"),
        (lambda x: breakpoint() or 2 * x, "a check has nobody"),
        (lambda x: sys.stdin.readline().upper(), "expected a number"),
    ],
    ids="exit sys os input recursion base generator odd slow long lines pdb stdin".split(),
)
def test_odd_ends_are_one_line(answer, told):
    assert told in one_line(judge(TASK, answer))


def test_a_notebooks_exit_does_not_end_the_kernel():
    class Shell:
        ended = False

        def ask_exit(self):
            self.ended = True

    shell = Shell()
    fake = type(sys)("IPython")
    fake.get_ipython = lambda: shell
    kept = sys.modules.get("IPython")
    sys.modules["IPython"] = fake
    try:
        assert "SystemExit" in one_line(judge(TASK, lambda x: shell.ask_exit()))
        assert not shell.ended
        shell.ask_exit()
        assert shell.ended
    finally:
        del sys.modules["IPython"]
        if kept is not None:
            sys.modules["IPython"] = kept


class BadEqual:
    def __eq__(self, other):
        raise RuntimeError("no")


class BadRepr:
    def __repr__(self):
        while True:
            pass


class BadArray:
    def __array__(self, *args, **named):
        raise BaseException("no array")


class BadLength(list):
    def __len__(self):
        raise NotImplementedError


class Yes:
    def __eq__(self, other):
        return True

    __hash__ = None


def round_about():
    made = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    "made",
    [
        BadEqual,
        BadRepr,
        BadArray,
        BadLength,
        Yes,
        round_about,
        lambda: [0] * 10**7,
        lambda: np.zeros(10**8, np.uint8),
        lambda: "x" * 10**7,
        lambda: {str(i): i for i in range(10**5)},
        lambda: 10**10000,
        lambda: (i for i in iter(int, 1)),
        lambda: np.array([object()] * 3),
        lambda: torch.zeros(3, device="meta"),
        lambda: NotImplemented,
    ],
    ids=range(15),
)
@pytest.mark.parametrize("wanted", ["numbers", "text", "list", "dict"])
def test_odd_values_are_one_line(made, wanted):
    reference = {
        "numbers": lambda x: 2 * x,
        "text": lambda x: "a word",
        "list": lambda x: ["a", "b"],
        "dict": lambda x: {"a": 1, "b": 2},
    }[wanted]
    task = Exercise("99-odd", "Odd", TASK.inputs, reference, cases=1)
    one_line(judge(task, lambda x: made()))
