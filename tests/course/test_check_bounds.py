"""Whatever an answer does, a check ends soon with one line: bounds of time, memory and output."""

import builtins
import contextlib
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from doubling import TASK, one_line, raising

from minilora.course import check, check_bounds
from minilora.course.check import judge
from minilora.course.check_bounds import bounded

pytestmark = pytest.mark.usefixtures("short")


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
    deadline = time.monotonic() + 40  # a busy machine is slow to end a thread
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
