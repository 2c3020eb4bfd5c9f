"""A bar on standard error for what takes longer than two seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

SECONDS = 2.0


def late() -> type:
    """The library's bar, shown only where it takes longer."""
    from tqdm import tqdm

    class Late(tqdm):
        def __init__(self, *args, **settings):
            super().__init__(*args, **{"delay": SECONDS, "leave": False, **settings})

    return Late


@contextlib.contextmanager
def bar(what: str, total: int, unit: str = "B") -> Iterator[Callable[[int], object]]:
    """Yield a function that is told how much is done in all."""
    with late()(total=total, desc=what, unit=unit, unit_scale=True) as shown:
        yield lambda done: shown.update(done - shown.n)
