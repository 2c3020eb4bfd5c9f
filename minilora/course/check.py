"""Instant checks for the exercises: is it right, and if not, what is the likeliest mistake?

What it replaces: `assert np.allclose(...)`, which stops the notebook and gives no hint.
How it works: `check.exercise("08-delta", delta)` calls the learner's function and the reference on
the same random inputs and judges the shape first, then the values. If they differ it tries the
named wrong answers of the exercise: the one that gives the learner's numbers is the likeliest
mistake, and its hint is shown. The verdict shows itself as ✅, ⏳ or ❌ with `data-state` `done`,
`waiting` or `wrong`. It never raises, so that "Run all" goes on; with MINILORA_STRICT=1 all but ✅
raise CheckFailed.
What it leaves out: loops that never end (interrupt the kernel), and answers that are right by
another path but off by more than the exercise's tolerance.
Where numerics differ: see `course.exercises`; comparison happens in float64, bfloat16 included.
"""

from __future__ import annotations

import copy
import html
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MiniloraError
from .exercises import Exercise, find

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
    except (Exception, SystemExit) as error:
        verdict = Verdict(str(identity), "wrong", f"the check itself could not run: {_told(error)}")
    if verdict.state != "done" and os.environ.get("MINILORA_STRICT") == "1":
        raise CheckFailed(f"exercise {identity}: {verdict.message}")
    return verdict


def judge(task: Exercise, answer: Callable) -> Verdict:
    """The verdict on `answer`, first bad case first. Exceptions of the answer become ⏳ or ❌.
    Those of the exercise pass.
    """
    cases = [_inputs(task, seed) for seed in range(task.cases)]
    wanted = [_run(task, task.reference, case) for case in cases]
    got = []
    for case in cases:
        try:
            got.append(_run(task, answer, case))
        except NotImplementedError:
            return Verdict(
                task.id,
                "waiting",
                f"{task.title}: not written yet. Fill in the cell above, then run this one again.",
            )
        except (Exception, SystemExit) as error:
            return Verdict(
                task.id,
                "wrong",
                f"{task.title}: your code stops with {_told(error)}",
                type(error).__name__,
            )
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
    except (Exception, SystemExit):
        return False


def _told(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


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
        return f"a dict with the keys {sorted(map(str, value))}"
    if isinstance(value, (list, tuple)):
        return f"{len(value)} of them"
    return f"{type(value).__name__} {str(value)[:60]!r}"


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
        return array.astype(np.float64)
    return array if array.dtype.kind in "biuc" else None


def _leaf_difference(got: Any, wanted: Any, tolerance: float) -> str:
    want, have = _array(wanted), _array(got)
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
