"""Which line of a user's file a row of ids came from.

What it replaces: "row 37 of the data", which nobody finds in a file with empty lines.
What it leaves out: data that is no JSONL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import MiniloraError
from ..train.row_checks import RowFailed

SPLITS = {"data": "train", "validation data": "valid"}  # by what `train.fit` calls them


def line_of(file: Path, row: int) -> int | None:
    """The line, from 1, of the row-th example of a JSONL file; None where that cannot be said."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError):
        return None
    filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    return filled[row - 1] if row <= len(filled) else None


@contextmanager
def named(data: Path) -> Iterator[None]:
    """Inside, what is wrong with a row is told with the file and the line of `data` it came from.
    Every example must have given one row.
    """
    try:
        yield
    except RowFailed as error:
        file = data / f"{SPLITS[error.among]}.jsonl" if data.is_dir() else data
        line = line_of(file, error.number) if file.suffix == ".jsonl" else None
        if line is None:
            raise
        raise MiniloraError(f"{file}, line {line} {error.problem}") from error
