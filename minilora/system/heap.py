"""Give back to the system what the C library keeps of memory that this process has let go.

What it replaces: nothing; a process that has loaded a model in 32 bits and packed it into 4 goes on
holding most of the room of the former.
How it works: glibc cuts blocks below 32 MB out of one heap, and gives only the heap's end back by
itself. What is free in the middle stays the process's, used again or not. `malloc_trim` hands the
pages of all free blocks back. It changes no number; pages that are wanted again cost a page fault
each, so it is called where much was freed for good, not in each step.
What it leaves out: other C libraries, which have other habits.
"""

from __future__ import annotations

import ctypes
import sys


def give_back() -> bool:
    """Hand the pages of free blocks back; False where the C library has no way to be asked."""
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:  # musl
        return False
    trim(0)
    return True
