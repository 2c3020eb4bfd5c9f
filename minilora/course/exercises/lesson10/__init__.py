"""The exercises of lesson 10: count, decode, send a gradient through, keep nothing, merge.

What it replaces: trusting that a base of four bits trains as it should.
How it works: see `course.exercises`. No wrong answer can hide: weight counts are odd and no
multiple of a block, scales fill more than one outer block, A *and* B are random and not zero, α/r
is no whole number, in is not out. What a function keeps is found wherever it puts it: x's memory is
still there, or other codes, put in between forward and backward, change nothing.
What it leaves out: biases, several adapters, 16-bit arithmetic.
Where numerics differ: nowhere; bytes are whole numbers and must be equal.
"""

from __future__ import annotations

from .adapted import FUNCTION, GRADIENT, MERGE
from .packed import BYTES, DECODE

EXERCISES = [BYTES, DECODE, GRADIENT, FUNCTION, MERGE]
