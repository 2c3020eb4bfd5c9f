"""The trial itself: each way in which a case can end is told, a killed process too."""

import sys
import time
from pathlib import Path

import pytest
import torch

from minilora.errors import MiniloraError

sys.path.insert(0, str(Path(__file__).parent))
import kinds
import test_damaged_files as trial
import worker


def ends(error=None, value=None):
    def ours(folder):
        if error is not None:
            raise error
        return value

    return ours


class Panic(BaseException):
    """As tokenizers' own, which is no Exception."""


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (None, "loads"),
        (MiniloraError("x.json: no; mend it"), "refused"),
        (MiniloraError("two\nlines"), "raised"),
        (MiniloraError("long " * 300), "raised"),
        (ValueError("x"), "raised"),
        (RecursionError(), "raised"),
        (MemoryError(), "raised"),
        (Panic("x"), "raised"),
        (SystemExit(1), "raised"),
    ],
)
def test_an_error_is_the_one_line_that_was_promised_or_wrong(tmp_path, error, ended):
    kind = kinds.Kind("x", lambda rng, data: data, ends(error))
    told = worker.tried(kind, tmp_path)
    assert told["ended"] == ended
    assert bool(trial.wrong([told])) == (ended == "raised")


@pytest.mark.parametrize(
    ("ours", "theirs", "alike"),
    [
        (torch.ones(2, 3), torch.ones(2, 3) + 2e-4, False),
        (torch.ones(2, 3), torch.ones(2, 3) + 2e-5, True),
        (torch.full((2, 3), 100.0), torch.full((2, 3), 100.002), True),
        (torch.ones(2, 3), torch.ones(2, 4), False),
        (torch.ones(2, 3), None, True),  # the library does not read it
        ([[1, 2], "x"], [[1, 2], "x"], True),
        ([[1, 2], "x"], [[1, 3], "x"], False),
    ],
)
def test_what_loads_is_compared_with_the_library(tmp_path, ours, theirs, alike):
    kind = kinds.Kind("x", lambda rng, data: data, ends(value=ours), ends(value=theirs))
    assert worker.tried(kind, tmp_path)["ended"] == ("loads" if alike else "differs")
    broken = kinds.Kind("x", lambda rng, data: data, ends(value=ours), ends(ValueError()))
    assert worker.tried(broken, tmp_path)["ended"] == "loads"


def test_what_takes_long_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "SECONDS", 0.05)

    def ours(folder):
        began = time.process_time()
        while time.process_time() - began < 0.1:
            pass

    assert worker.tried(kinds.Kind("x", lambda r, d: d, ours), tmp_path)["ended"] == "slow"


def test_the_next_case_goes_on_behind_one_that_ends_the_process(tmp_path, monkeypatch):
    """Case 2 ends the process, each time that it is tried."""

    def lines(command, errors, patience):
        first, count = map(int, command[-2:])
        numbers = range(first, min(first + count, 2) if first <= 2 else first + count)
        errors.write("".join(f"case {number}\n" for number in [*numbers, "next"]))
        return ['{"ended": "loads", "seconds": 0, "told": ""}'] * len(numbers), "ended with -6"

    monkeypatch.setattr(trial, "_lines", lines)
    ended = [each["ended"] for each in trial.outcomes(tmp_path, "config", 5)]
    assert ended == ["loads", "loads", "killed", "loads", "loads"]
