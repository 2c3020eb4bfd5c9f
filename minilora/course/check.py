"""Instant checks for the exercises: is it right, and if not, what is the likeliest mistake?

What it replaces: `assert np.allclose(...)`, which stops the notebook and gives no hint.
How it works: `check.exercise("08-delta", delta)` calls the learner's function and the reference on
the same random inputs and judges the shape first, then the values. If they differ it tries the
named wrong answers of the exercise: the one that gives the learner's numbers is the likeliest
mistake, and its hint is shown. The verdict shows itself as ✅, ⏳ or ❌ with `data-state` `done`,
`waiting` or `wrong`. It never raises, so that "Run all" goes on; with MINILORA_STRICT=1 all but ✅
raise CheckFailed. An interrupt of the kernel is the learner's and stops the cell. Whatever an
answer does, or gives back, it has SECONDS and a page to print on, and what it changed for everybody
is put back (`check_bounds`).
What it leaves out: answers that are right by another path but off by more than the exercise's
tolerance.
Where numerics differ: see `course.exercises`; comparison happens in float64, bfloat16 included.
"""

from __future__ import annotations

import copy
import html
import os
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np

from ..errors import MiniloraError
from .check_bounds import PRINTED, Outcome, bounded
from .check_state import Snapshot
from .exercises import Exercise, find

SECONDS = 20.0  # for all that a check does with an answer; the slowest right one takes 1
STOPS = "your code stops with "
SIGNS = {"done": "✅", "waiting": "⏳", "wrong": "❌"}


class CheckFailed(MiniloraError):
    """An exercise is not solved, and MINILORA_STRICT=1 asked for an exception."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check: `state` is done, waiting or wrong; `mistake` names the likeliest one,
    or is empty.
    """

    exercise: str
    state: str
    message: str
    mistake: str = ""

    def __repr__(self) -> str:
        return f"{SIGNS[self.state]} {self.message}"

    def _repr_html_(self) -> str:
        return (
            f'<div class="minilora-check" role="status" data-state="{self.state}"'
            f' data-exercise="{html.escape(self.exercise)}">{SIGNS[self.state]} '
            f"{html.escape(self.message)}</div>"
        )


def exercise(identity: str, answer: Callable) -> Verdict:
    """Judge `answer` as a solution of the exercise `identity`; the verdict shows itself as the last
    line of a cell.

    Never raises, unless MINILORA_STRICT=1 is set: then CheckFailed for every verdict but ✅.
    """
    try:
        verdict = judge(find(identity), answer)
    except KeyboardInterrupt:  # the learner's
        raise
    except BaseException as error:  # some libraries raise what is no Exception
        verdict = Verdict(str(identity), "wrong", f"the check itself could not run: {_told(error)}")
    if verdict.state != "done" and os.environ.get("MINILORA_STRICT") == "1":
        raise CheckFailed(f"exercise {identity}: {verdict.message}")
    return verdict


def judge(task: Exercise, answer: Callable) -> Verdict:
    """The verdict on `answer`, first bad case first. What the answer raises becomes ⏳ or ❌, but
    for KeyboardInterrupt. Exceptions of the exercise pass.
    """
    cases = [_inputs(task, seed) for seed in range(task.cases)]
    wanted = [_run(task, task.reference, case) for case in cases]
    given = [copy.deepcopy(case) for case in cases]
    state, end, got = Snapshot(), monotonic() + SECONDS, []
    for case in given:
        outcome = bounded(lambda case=case: task.run(answer, *case), end - monotonic(), state)
        if outcome.printed:
            print(outcome.printed, end="")
        if trouble := _trouble(task, outcome):
            return trouble
        got.append(outcome.value)
    # what came back may be anything, and looking at it runs its code
    looked = bounded(lambda: _look(task, cases, got, wanted), end - monotonic(), state)
    return looked.value or _trouble(task, looked, "what it returns cannot be compared: ")


def _trouble(task: Exercise, outcome: Outcome, where: str = STOPS) -> Any:
    """The verdict on an answer that did not end by itself or with a value; else None."""
    if outcome.stopped == "time":
        told = (
            f"your code was stopped, since a check takes {SECONDS:g} seconds at most. Is there a "
        )
        told += "loop that never ends?"
        if outcome.left:
            told += " It is in one long call, which goes on: restart the kernel to end it."
        return Verdict(task.id, "wrong", f"{task.title}: {told}", "time")
    if outcome.stopped == "output":
        told = f"your code was stopped, since it prints more than {PRINTED:,} characters."
        return Verdict(task.id, "wrong", f"{task.title}: {told}", "output")
    if outcome.stopped == "memory":
        told = "your code was stopped, since it has filled the memory. What does it keep?"
        return Verdict(task.id, "wrong", f"{task.title}: {told}", "memory")
    if isinstance(outcome.error, NotImplementedError) and where == STOPS:
        told = "not written yet. Fill in the cell above, then run this one again."
        return Verdict(task.id, "waiting", f"{task.title}: {told}")
    if outcome.error is not None:
        told, kind = _told(outcome.error), type(outcome.error).__name__
        return Verdict(task.id, "wrong", f"{task.title}: {where}{told}", kind)
    return None


def _look(task: Exercise, cases: list[tuple], got: list, wanted: list) -> Verdict:
    """The verdict on what an answer returned."""
    faults = [difference(g, w, task.tolerance) for g, w in zip(got, wanted)]
    fault = next((f for f in faults if f), "")
    if not fault:
        return Verdict(task.id, "done", f"{task.title}: right.")
    for wrong in task.wrong:
        if all(_same(task, wrong.answer, case, g) for case, g in zip(cases, got)):
            return Verdict(
                task.id,
                "wrong",
                f"{task.title}: {fault}. Likeliest mistake: {wrong.hint}",
                wrong.name,
            )
    return Verdict(task.id, "wrong", f"{task.title}: {fault}.")


def _inputs(task: Exercise, seed: int) -> tuple:
    made = task.inputs(np.random.default_rng(seed))
    return made if isinstance(made, tuple) else (made,)


def _run(task: Exercise, answer: Callable, case: tuple) -> Any:
    """Call with copies, so that an answer that writes into its inputs spoils nothing."""
    return task.run(answer, *copy.deepcopy(case))


def _same(task: Exercise, wrong: Callable, case: tuple, got: Any) -> bool:
    try:
        return not difference(got, _run(task, wrong, case), task.tolerance)
    except Exception:
        return False


def _told(error: BaseException) -> str:
    name = type(error).__name__
    said = bounded(lambda: str(error)[:2000].strip().splitlines()[:1], 1.0).value  # may be its code
    return f"{name}: {said[0][:300]}" if said else name


def difference(got: Any, wanted: Any, tolerance: float = 1e-5) -> str:
    """One phrase that says how `got` differs from `wanted` (numbers, arrays, tensors, text, lists,
    dicts); "" if it does not.
    """
    if got is None and wanted is not None:
        return "it returns None (is the `return` missing?)"
    if isinstance(wanted, dict):
        if not isinstance(got, dict) or set(got) != set(wanted):
            return f"expected a dict with the keys {sorted(map(str, wanted))}, got {_named(got)}"
        parts = ((f"[{key!r}]", got[key], wanted[key]) for key in wanted)
    elif isinstance(wanted, (list, tuple)) and not _is_numbers(wanted):
        if not isinstance(got, (list, tuple)) or len(got) != len(wanted):
            return f"expected {len(wanted)} things, got {_named(got)}"
        parts = ((f"[{i}]", g, w) for i, (g, w) in enumerate(zip(got, wanted)))
    else:
        return _leaf_difference(got, wanted, tolerance)
    for place, g, w in parts:
        if told := difference(g, w, tolerance):
            return f"in {place}: {told}"
    return ""


def _is_numbers(value: Any) -> bool:
    return len(value) > 0 and all(isinstance(v, (bool, int, float, np.number)) for v in value)


def _named(value: Any) -> str:
    if isinstance(value, dict):
        keys = sorted(map(str, value))
        return f"a dict with the keys {keys if len(keys) <= 20 else reprlib.repr(keys)}"
    if isinstance(value, (list, tuple)):
        return f"{len(value)} of them"
    # the ends of a long list alone are written out
    return f"{type(value).__name__} {' '.join(reprlib.repr(value).split())[:60]}"


def _array(value: Any) -> np.ndarray | None:
    """A NumPy view of numbers, arrays and torch tensors (float64 if floating); None for anything
    else.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return None
    if array.dtype.kind == "f":
        return array.astype(np.float64, copy=False)
    return array if array.dtype.kind in "biuc" else None


def _leaf_difference(got: Any, wanted: Any, tolerance: float) -> str:
    want, shape = _array(wanted), getattr(got, "shape", None)
    if want is not None and isinstance(shape, tuple) and tuple(shape) != want.shape:
        return f"the shape is {tuple(shape)}, expected {want.shape}"  # before it is converted
    have = _array(got)
    if want is None:
        return (
            ""
            if type(got) is type(wanted) and got == wanted
            else f"expected {str(wanted)[:80]!r}, got {_named(got)}"
        )
    if have is None:
        return f"expected a number or an array, got {_named(got)}"
    if have.shape != want.shape:
        return f"the shape is {have.shape}, expected {want.shape}"
    if have.size == 0:
        return ""
    if not np.isfinite(have).all() and np.isfinite(want).all():
        return (
            f"{int((~np.isfinite(have)).sum())} of {have.size} values are not finite (NaN or "
            "infinity)"
        )
    return _value_difference(have, want, tolerance)


def _value_difference(have: np.ndarray, want: np.ndarray, tolerance: float) -> str:
    if have.dtype.kind in "biu" and want.dtype.kind in "biu":
        off = have != want
        gap = np.abs(have.astype(np.float64) - want.astype(np.float64))
    else:
        with np.errstate(invalid="ignore"):
            gap = np.abs(have - want)
        gap = np.where((have == want) | (np.isnan(have) & np.isnan(want)), 0.0, gap)
        finite = np.abs(want[np.isfinite(want)])
        limit = tolerance * max(float(finite.max()) if finite.size else 0.0, 1e-30)
        off = ~(gap <= limit)
    if not off.any():
        return ""
    if want.ndim == 0:
        return f"the value is {have.item():.6g}, expected {want.item():.6g}"
    place = tuple(
        int(i) for i in np.unravel_index(int(np.argmax(np.where(off, gap, -1.0))), want.shape)
    )
    return (
        f"the shape is right, but {int(off.sum())} of {want.size} values are not;"
        f" at {list(place)} it is {have[place]:.6g}, expected {want[place]:.6g}"
    )
