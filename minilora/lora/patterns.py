"""Regular expressions that somebody else wrote, with an end to the time that they take.

What it replaces: `re.fullmatch`, for target_modules, rank_pattern and alpha_pattern.
How it works: a pattern such as (.*)*x tries exponentially many ways before it gives up. The module
`regex` reads the same language and stops after a given time. Each pattern has half a second for all
the paths that it is ever asked about, where an honest one takes microseconds a path; an answer is
kept, so asking again costs nothing.
What it leaves out: what `regex` knows and `re` does not. `re` has to understand a pattern first,
and a brace that counts nothing, which `re` takes as it stands and `regex` as a word about errors,
is refused.
"""

from __future__ import annotations

import functools
import re
import time
from reprlib import repr as short

import regex

from ..errors import MiniloraError

SECONDS = 0.5
LONGEST = 20_000  # characters; the patterns that trainers write have some hundreds


class Bounded:
    """One pattern, what it has answered, and the time that it has left."""

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.left: float = SECONDS
        self.answers: dict[str, bool] = {}
        try:
            if len(pattern) > LONGEST:
                raise ValueError(f"it has {len(pattern):,} characters")
            if re.search(r"(?<!\\)\{(?!\d*,?\d*\})", pattern):
                raise ValueError("its { counts nothing")
            re.compile(pattern)
            self.compiled = regex.compile(pattern)
        except (re.error, regex.error, ValueError, OverflowError, RecursionError) as error:
            raise MiniloraError(
                f"{short(pattern)} is no regular expression ({' '.join(str(error).split())}); "
                "give names in a list"
            ) from None

    def matches(self, path: str) -> bool:
        if path not in self.answers:
            before = time.monotonic()
            try:
                # a timeout of 0 or less would mean none
                found = self.left > 0 and self.compiled.fullmatch(path, timeout=self.left)
            except TimeoutError:
                found, self.left = None, 0
            self.left -= time.monotonic() - before
            if self.left <= 0:
                raise MiniloraError(
                    f"the regular expression {short(self.pattern)} takes too long on {path}: it "
                    "can match in too many ways; write it without a * inside a *, or give names "
                    "in a list"
                )
            self.answers[path] = found is not None
        return self.answers[path]


@functools.lru_cache(maxsize=4096)
def bounded(pattern: str) -> Bounded:
    """`pattern`, ready to be asked. Raises MiniloraError if it is none."""
    return Bounded(pattern)


def fullmatch(pattern: str, path: str) -> bool:
    """Whether all of `path` matches, as re.fullmatch has it. Raises MiniloraError for a pattern
    that is none, or that takes longer than half a second over all paths together.
    """
    return bounded(pattern).matches(path)
