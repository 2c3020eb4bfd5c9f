"""Give back to the system what the C library keeps of memory that this process has let go.

What it replaces: nothing; a process that has loaded a model in 32 bits and packed it into 4 goes on
holding most of the room of the former.
How it works: glibc cuts blocks below 32 MB out of one heap, and gives only the heap's end back by
itself. What is free in the middle stays the process's, used again or not. `malloc_trim` hands the
pages of all free blocks back. It changes no number; pages that are wanted again cost a page fault
each, so it is called where much was freed for good, not in each step.
A process that is short of memory can do better than clean up: `without_holes` has it ask the system
for each block of a MiB and more by itself, so that what is let go goes back at once and no holes
come about. Each such block costs page faults: a step of SmolLM2-135M took a third longer and a
sixth less memory.
What it leaves out: other C libraries, which have other habits.
"""

from __future__ import annotations

import ctypes
import os
import sys

# names of <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

LARGE, END = 1 << 20, 1 << 17  # bytes: of a block by itself; free ones at the heap's end


def give_back() -> bool:
    """Hand the pages of free blocks back; False where the C library has no way to be asked."""
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:  # musl
        return False
    trim(0)
    return True


def without_holes() -> bool:
    """Large blocks go back to the system as soon as they are free, from now on and in this whole
    process; False where the C library has no way to be told, or the user has told it already.
    """
    told = [name for name in os.environ if name.startswith("MALLOC_") and name.endswith("_")]
    if not sys.platform.startswith("linux") or told or "GLIBC_TUNABLES" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, END))
