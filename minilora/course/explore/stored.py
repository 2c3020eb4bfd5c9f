"""Tables of runs that a lesson cannot wait for.

What it replaces: training at each move of a slider.
How it works: a benchmark wrote the table to `benchmarks/results`, which the package carries.
What it leaves out: looking whether the table is of today's code.
"""

from __future__ import annotations

import json

from ...errors import MiniloraError
from ...system.files import results_folder


def stored(name: str, what: str, benchmark: str, takes: str) -> dict:
    """The table in the file `name`. Raises MiniloraError where it is missing, with the command that
    makes it.
    """
    path = results_folder() / name
    if not path.is_file():
        raise MiniloraError(
            f"the table of {what} is not there; make it with `python -m {benchmark}` in the "
            f"repository (about {takes})"
        )
    return json.loads(path.read_text(encoding="utf-8"))
