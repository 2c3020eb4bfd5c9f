"""Somebody's code, run for a bounded time and with bounded output.

What it replaces: interrupting the kernel, and `signal.alarm`, which Windows has not and Jupyter
needs for itself.
How it works: the code runs in a thread of its own, and the thread that asked waits. When the time
is over, an exception is put into the running thread (`PyThreadState_SetAsyncExc`), again and again,
for code may catch it. While it runs, what it prints goes to a page of bounded size, `input()` and
`exit()` of a notebook become exceptions, and everything global that it changes is put back at the
end (`check_state`). An interrupt of the kernel reaches the thread that waits: it stops the code,
puts back, and goes on its way.
What it leaves out: one long call into C cannot be stopped, since exceptions are looked at between
Python's instructions. It is left behind, and told: it goes on in its thread, and ends as soon as
the call returns. What C code, or another process, prints is not bounded.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import ctypes
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Lock, Thread
from time import monotonic, sleep
from typing import Any

from ..system.memory import available
from .check_state import Snapshot

SWITCH = 1e-5  # seconds from one thread to the next while one is to end
LOOK = 0.02  # seconds between two looks at the thread
PATIENCE = 2.0  # seconds that code gets to end after it was told to
PRINTED = 20_000  # characters
LEAST = 400 * 10**6  # bytes of free memory; below, a system begins to end programs


class Stopped(SystemExit):
    """Ends somebody's code from outside. A thread that ends by a SystemExit does so in silence.

    Code that catches it gets it again at its next line: it is made in the thread that it ends, so
    there it can turn tracing on, for every function that is running.
    """

    def __init__(self, *told: object) -> None:
        super().__init__(*told)
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not _work.__code__:
            frame.f_trace = _again
            frame = frame.f_back
        if frame is not None:  # else it is no code of somebody's
            sys.settrace(_again)


def _again(frame: Any, event: str, argument: Any) -> None:
    """Called at each line and each call; raising turns tracing off."""
    if event in ("line", "call"):  # an exception is told, too, and may be the one that began this
        raise Stopped


class NoInput(RuntimeError):
    """The code asks whoever sits in front of the notebook, and waits."""


@dataclass
class Outcome:
    """How it ended: with a value, with an error, or stopped for its `time`, its `output` or
    its `memory`. left: it could not be stopped and still runs.
    """

    value: Any = None
    error: BaseException | None = None
    stopped: str = ""
    left: bool = False
    printed: str = ""
    over: bool = False  # the code has ended: nothing is to be put into its thread any more
    turn: Any = field(default_factory=Lock)  # held while something is


class _Page(io.TextIOBase):
    """Takes what is printed, up to a number of characters; then writing raises."""

    def __init__(self, most: int) -> None:
        self.most, self.parts, self.size = most, [], 0
        self.lock = Lock()

    @property
    def full(self) -> bool:
        return self.size > self.most

    def write(self, text: str) -> int:
        with self.lock:
            if not self.full:
                self.parts.append(text[: self.most - self.size])
            self.size += len(text)
        if self.full:
            raise Stopped("too much is printed")
        return len(text)

    def text(self) -> str:
        return "".join(self.parts) + (" …\n" if self.full else "")


def bounded(call: Callable[[], Any], seconds: float, state: Snapshot | None = None) -> Outcome:
    """Run `call` for at most `seconds` and PRINTED characters, and put back what it changed since
    `state` (None: since now).

    KeyboardInterrupt passes, whether it comes to the waiting thread or out of `call`.
    """
    outcome, page, state = Outcome(), _Page(PRINTED), state or Snapshot()
    context = contextvars.copy_context()  # NumPy's error handling is in it
    thread = Thread(target=_work, args=(context, call, outcome), daemon=True)
    try:
        with _surroundings(page):
            try:
                thread.start()
                _wait(thread, page, outcome, monotonic() + seconds)
            finally:  # an interrupt, too, ends it
                outcome.left = not _end(thread, outcome)
    finally:
        state.restore()
    outcome.printed = page.text()
    if page.full and not outcome.stopped:  # it ended in the same moment
        outcome.stopped = "output"
    if isinstance(outcome.error, KeyboardInterrupt):
        raise outcome.error
    return outcome


def _work(context: contextvars.Context, call: Callable[[], Any], outcome: Outcome) -> None:
    """What the thread does. It returns only when no exception can reach it any more: one that came
    while Python takes the thread off its list would leave it there for ever.
    """
    try:
        try:
            outcome.value = context.run(call)
            outcome.over = True
        except BaseException as error:
            outcome.over = True  # before any call: an exception from outside is met at calls
            outcome.error = error
        sys.settrace(None)
        with outcome.turn:  # the last may be on its way
            pass
        for _ in range(2):  # and is met here at the latest
            pass
    except Stopped:
        sys.settrace(None)


def _wait(thread: Thread, page: _Page, outcome: Outcome, deadline: float) -> None:
    """Until the thread has ended, or is to be ended."""
    least = min(LEAST, (available("cpu") or 0) // 2)  # somebody else may have filled the memory
    while thread.is_alive():
        left = deadline - monotonic()
        if page.full:
            outcome.stopped = "output"
            return
        if left <= 0:
            outcome.stopped = "time"
            return
        if (free := available("cpu")) is not None and free < least:
            outcome.stopped = "memory"
            return
        thread.join(min(left, LOOK))


def _end(thread: Thread, outcome: Outcome) -> bool:
    """Make the thread end. Returns whether it has; if not, it is told so until it does."""
    deadline, usual = monotonic() + PATIENCE, sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)  # so that it is also met where it handles the exception before
    while thread.is_alive() and monotonic() < deadline:
        _raise_in(thread, outcome)
        thread.join(SWITCH)
    sys.setswitchinterval(usual)
    if thread.is_alive():

        def go_on() -> None:
            while thread.is_alive():
                _raise_in(thread, outcome)
                sleep(LOOK)

        Thread(target=go_on, daemon=True).start()
    return not thread.is_alive()


def _raise_in(thread: Thread, outcome: Outcome) -> None:
    """Let the thread meet Stopped at its next call or turn of a loop, if its code still runs."""
    ident = ctypes.c_ulong(thread.ident or 0)
    with outcome.turn:
        if not outcome.over:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Stopped))


@contextlib.contextmanager
def _surroundings(page: _Page) -> Iterator[None]:
    """Within the block printing goes to the page, nobody can be asked, and no kernel ends."""

    def no_input(*args: object, **named: object) -> str:
        raise NoInput("it waits for somebody's input, and a check has nobody; use the arguments")

    def leave(*args: object, **named: object) -> None:
        raise SystemExit(*args[:1])

    names: list[tuple[object, str, object]] = [
        *((sys, name, page) for name in ("stdout", "stderr", "__stdout__", "__stderr__")),
        (sys, "stdin", io.StringIO()),
        (builtins, "input", no_input),
        (sys, "breakpointhook", no_input),
        (os, "_exit", leave),
    ]
    shell = _shell()
    if shell is not None:  # a notebook's exit() asks its kernel to end
        names.append((shell, "ask_exit", leave))
    before = [(place, name, vars(place).get(name, names)) for place, name, _ in names]
    for place, name, value in names:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            if value is names:  # there was none of its own
                delattr(place, name)
            else:
                setattr(place, name, value)


def _shell() -> Any:
    """The notebook's shell, or None outside of one."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None
