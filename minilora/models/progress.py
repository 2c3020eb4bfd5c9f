"""A bar on standard error for what takes longer than two seconds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

SECONDS = 2.0
LOGGED = 15.0  # seconds between two lines where nobody watches them


def late() -> type:
    """The library's bar, shown only where it takes longer."""
    from tqdm import tqdm

    class Late(tqdm):
        def __init__(self, *args, **settings):
            often = 0.1 if sys.stderr.isatty() else LOGGED
            own = {"delay": SECONDS, "leave": False, "mininterval": often}
            super().__init__(*args, **{**own, **settings})

    return Late


@contextlib.contextmanager
def bar(what: str, total: int, unit: str = "B") -> Iterator[Callable[[int], object]]:
    """Yield a function that is told how much is done in all."""
    with late()(total=total, desc=what, unit=unit, unit_scale=True) as shown:
        yield lambda done: shown.update(done - shown.n)
