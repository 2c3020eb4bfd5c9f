"""Whatever an answer does, a check ends soon with one line, and the kernel is as it was."""

import builtins
import contextlib
import gc
import json
import math
import os
import random
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch

from minilora.course import check, check_bounds
from minilora.course.check import judge
from minilora.course.check_bounds import bounded
from minilora.course.exercises import Exercise, Wrong
from minilora.lora import layer as lora_layer

TASK = Exercise(
    "99-double",
    "Twice",
    lambda rng: (rng.normal(size=3),),
    lambda x: 2 * x,
    [Wrong("thrice", lambda x: 3 * x, "twice, not thrice")],
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 0.6)
    monkeypatch.setattr(check_bounds, "PATIENCE", 0.5)
    monkeypatch.setattr(check_bounds, "PRINTED", 2000)
    monkeypatch.setattr(check, "PRINTED", 2000)
    monkeypatch.delenv("MINILORA_STRICT", raising=False)


def one_line(verdict, mistake=None):
    assert verdict.state == "wrong"
    assert "\n" not in verdict.message and len(verdict.message) < 600
    assert mistake is None or verdict.mistake == mistake
    return verdict.message


# ------------------------------------------------------------------------------------------- time


def forever(x):
    while True:
        pass


def deaf(x):
    """Catches what should end it, at each place of the loop."""
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass


def sleeping(x):
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(0.01)


def giving_in(x):
    """Answers once it was told to end."""
    while True:
        with contextlib.suppress(BaseException):
            while True:
                pass
        return x


def endless_generator(x):
    return sum(i for i in iter(int, 1))


def very_deaf(x):
    try:
        deaf(x)
    finally:
        deaf(x)


LOOPS = [forever, deaf, very_deaf, sleeping, giving_in, endless_generator]


@pytest.mark.parametrize("answer", LOOPS)
def test_a_loop_that_never_ends_is_ended(answer):
    began = time.monotonic()
    assert "never ends" in one_line(judge(TASK, answer), "time")
    assert time.monotonic() - began < 8
    deadline = time.monotonic() + 60  # a busy machine is slow to end a thread
    while left := [each.name for each in threading.enumerate() if "(_work)" in each.name]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_code_that_has_ended_is_told_nothing():
    """What came then would meet Python's own lines that take the thread off its list."""
    met, goes_on = [], threading.Event()

    def work():
        try:
            while not goes_on.is_set():
                time.sleep(0.001)
        except check_bounds.Stopped:
            met.append("Stopped")

    for over in (True, False):
        thread = threading.Thread(target=work)
        thread.start()
        check_bounds._raise_in(thread, check_bounds.Outcome(over=over))
        thread.join(0.2)
        goes_on.set()
        thread.join()
        assert met == ([] if over else ["Stopped"])
        goes_on.clear()


def test_one_long_call_is_left_behind_and_told():
    began = time.monotonic()
    message = one_line(judge(TASK, lambda x: time.sleep(6)), "time")
    assert "restart the kernel" in message and time.monotonic() - began < 5
    assert judge(TASK, lambda x: x + x).state == "done"  # and the next check is as ever


def test_all_cases_together_have_the_time():
    began = time.monotonic()
    one_line(judge(TASK, lambda x: time.sleep(0.3) or 2 * x), "time")
    assert time.monotonic() - began < 4


def test_an_answer_of_moderate_length_is_waited_for(monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 20.0)
    assert judge(TASK, lambda x: time.sleep(0.4) or 2 * x).state == "done"


def test_a_full_memory_ends_an_answer(monkeypatch):
    kept = []

    def hoarder(x):
        while True:
            kept.append(None)

    monkeypatch.setattr(check, "SECONDS", 20.0)
    monkeypatch.setattr(check_bounds, "available", lambda device: 10**9 - len(kept) * 10**4)
    began = time.monotonic()
    assert "filled the memory" in one_line(judge(TASK, hoarder), "memory")
    assert time.monotonic() - began < 5


def test_a_memory_that_others_have_filled_ends_nothing(monkeypatch):
    for free in (10**6, None, 0):
        monkeypatch.setattr(check_bounds, "available", lambda device: free)
        assert judge(TASK, lambda x: time.sleep(0.05) or 2 * x).state == "done"


# ------------------------------------------------------------------------------------------ output


def test_printing_is_shown(capsys):
    assert judge(TASK, lambda x: print("mine", len(x)) or 2 * x).state == "done"
    assert capsys.readouterr().out == "mine 3\n" * 3


@pytest.mark.parametrize("stream", ["stdout", "stderr", "__stdout__"])
@pytest.mark.parametrize("how", ["at once", "in a loop"])
def test_too_much_print_is_cut(how, stream, capsys):
    def loud(x):
        out = getattr(sys, stream)
        out.write("x" * (10**8 if how == "at once" else 1))
        while True:
            print("y" * 50, file=out)

    assert "prints more than 2,000 characters" in one_line(judge(TASK, loud), "output")
    assert len(capsys.readouterr().out) < 2100


def test_a_printer_that_catches_is_ended():
    def stubborn(x):
        while True:
            with contextlib.suppress(BaseException):
                print("x" * 100)

    assert one_line(judge(TASK, stubborn), "output")


def test_the_streams_are_those_from_before():
    before = sys.stdout, sys.stderr, sys.stdin, sys.__stdout__, builtins.input, os._exit
    judge(TASK, lambda x: setattr(sys, "stdout", None))
    assert (sys.stdout, sys.stderr, sys.stdin, sys.__stdout__, builtins.input, os._exit) == before


# ------------------------------------------------------------------------- what ends in odd ways


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


def raising(error):
    def answer(x):
        raise error

    return answer


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


# ------------------------------------------------------------------------- what comes back


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


# ------------------------------------------------------------------------- interrupts


def test_an_interrupt_of_the_kernel_is_the_learners(monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 20.0)
    monkeypatch.setattr(check, "find", lambda identity: TASK)
    # whoever runs the tests in the background may have told them to ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    dot, before = np.dot, sys.stdout

    def answer(x):
        np.dot = None
        signal.raise_signal(signal.SIGINT)  # as Jupyter's stop button
        while True:
            pass

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        check.exercise("99-double", answer)
    assert time.monotonic() - began < 5
    assert np.dot is dot and sys.stdout is before


def test_an_interrupt_that_comes_out_of_the_answer_passes(monkeypatch):
    monkeypatch.setattr(check, "find", lambda identity: TASK)
    with pytest.raises(KeyboardInterrupt):
        check.exercise("99-double", raising(KeyboardInterrupt()))


# ------------------------------------------------------------------------- what is put back

DOT, MATMUL, ADD, FORWARD = np.dot, torch.matmul, torch.Tensor.add, torch.nn.Linear.forward
OURS = lora_layer.LoRALinear.forward


def _draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


PATCHES = {
    "numpy": (lambda: setattr(np, "dot", None), lambda: np.dot is DOT),
    "torch": (lambda: setattr(torch, "matmul", max), lambda: torch.matmul is MATMUL),
    "a method": (
        lambda: setattr(torch.Tensor, "add", None),
        lambda: torch.Tensor.add is ADD,
    ),
    "an operator": (
        lambda: setattr(torch.Tensor, "__matmul__", lambda a, b: a),
        lambda: torch.equal(torch.eye(2) @ torch.ones(2, 2), torch.ones(2, 2)),
    ),
    "a layer": (
        lambda: setattr(torch.nn.Linear, "forward", None),
        lambda: torch.nn.Linear.forward is FORWARD,
    ),
    "a module's own layer": (
        lambda: setattr(torch.nn.modules.linear, "Linear", None),
        lambda: torch.nn.modules.linear.Linear is torch.nn.Linear,
    ),
    "an optimizer": (
        lambda: setattr(torch.optim.AdamW, "step", None),
        lambda: callable(torch.optim.AdamW.step),
    ),
    "ours": (
        lambda: setattr(lora_layer.LoRALinear, "forward", None),
        lambda: lora_layer.LoRALinear.forward is OURS,
    ),
    "a builtin": (lambda: setattr(builtins, "len", lambda x: 7), lambda: len([]) == 0),
    "a builtin gone": (lambda: delattr(builtins, "sum"), lambda: sum([1]) == 1),
    "a builtin hidden": (
        lambda: setattr(check, "zip", lambda *a: []),
        lambda: not hasattr(check, "zip"),
    ),
    "a constant": (lambda: setattr(math, "pi", 3), lambda: math.pi > 3.1),
    "the check": (
        lambda: setattr(check, "difference", lambda *a: ""),
        lambda: check.difference(1, 2) != "",
    ),
    "default type": (
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.get_default_dtype() == torch.float32,
    ),
    "grad mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "default device": (
        lambda: torch.set_default_device("meta"),
        lambda: torch.zeros(1).device.type == "cpu",
    ),
    "numpy's form": (
        lambda: np.set_printoptions(precision=2),
        lambda: np.get_printoptions()["precision"] == 8,
    ),
    "numpy's errors": (lambda: np.seterr(all="raise"), lambda: np.geterr()["over"] == "warn"),
    "torch's form": (
        lambda: torch.set_printoptions(precision=2),
        lambda: str(torch.tensor(1 / 3)) == "tensor(0.3333)",
    ),
    "folder": (lambda: os.chdir("/"), lambda: os.getcwd() == HERE),
    "environment": (
        lambda: os.environ.update(MINILORA_ODD="1"),
        lambda: "MINILORA_ODD" not in os.environ,
    ),
    "environment gone": (lambda: os.environ.pop("PATH"), lambda: "PATH" in os.environ),
    "recursion": (lambda: sys.setrecursionlimit(300), lambda: sys.getrecursionlimit() == LIMIT),
    "path": (lambda: sys.path.clear(), lambda: len(sys.path) > 1),
    "a module": (lambda: sys.modules.pop("json"), lambda: sys.modules.get("json") is json),
    "garbage": (gc.disable, gc.isenabled),
    "the clock": (lambda: setattr(time, "sleep", None), lambda: time.sleep(0) is None),
}
HERE, LIMIT = os.getcwd(), sys.getrecursionlimit()


@pytest.mark.parametrize("ending", ["returns", "raises"])
@pytest.mark.parametrize("name", PATCHES)
def test_what_an_answer_patched_is_put_back(name, ending):
    patch, intact = PATCHES[name]
    assert intact()

    def answer(x):
        patch()
        if ending == "raises":
            raise ValueError("on purpose")
        return x + x

    verdict = judge(TASK, answer)
    assert verdict.state == ("done" if ending == "returns" else "wrong")
    assert intact()


def test_patches_of_one_case_are_gone_in_the_next():
    def answer(x):
        assert math.pi > 3.1
        math.pi = 3
        return 2 * x

    assert judge(TASK, answer).state == "done"


def test_a_check_cannot_be_talked_into_right():
    def cheat(x):
        check.difference = lambda *a: ""
        check._look = lambda *a: check.Verdict("99-double", "done", "right")
        np.abs = np.isfinite = lambda *a: np.zeros(1)
        return x

    assert judge(TASK, cheat).state == "wrong"


def test_random_numbers_go_on_as_if_nothing_had_been():
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    wanted = _draws()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)

    def answer(x):
        _draws()
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        return 2 * x

    assert judge(TASK, answer).state == "done"
    assert _draws() == wanted


def test_warnings_are_filtered_as_before():
    def answer(x):
        warnings.simplefilter("error")
        warnings.showwarning = None
        return 2 * x

    before, shown = list(warnings.filters), warnings.showwarning
    assert judge(TASK, answer).state == "done"
    assert list(warnings.filters) == before and warnings.showwarning is shown


def test_what_a_notebook_defines_stays_its_own():
    """A function of the learner may count its calls."""
    seen = []

    def answer(x):
        seen.append(1)
        globals()["COUNT"] = len(seen)
        return 2 * x

    assert judge(TASK, answer).state == "done" and COUNT == 3  # noqa: F821


def test_what_is_new_in_a_module_stays():
    """A library that is loaded while an answer runs is not torn apart."""

    def answer(x):
        torch.something_new = 1
        return 2 * x

    judge(TASK, answer)
    assert torch.something_new == 1
    del torch.something_new


def test_bounded_says_how_it_ended():
    done = bounded(lambda: print("a") or 5, 5)
    assert (done.value, done.error, done.stopped, done.left) == (5, None, "", False)
    assert done.printed == "a\n"
    assert isinstance(bounded(lambda: 1 / 0, 5).error, ZeroDivisionError)


def test_numpys_error_handling_of_the_cell_is_the_answers():
    with np.errstate(divide="raise"):
        assert isinstance(bounded(lambda: np.ones(1) / 0, 5).error, FloatingPointError)


def test_a_check_is_quick():
    judge(TASK, lambda x: 2 * x)
    began = time.process_time()  # the clock on the wall is shared with other work
    for _ in range(5):
        judge(TASK, lambda x: 2 * x)
    assert time.process_time() - began < 1.5
