"""The exercises of lesson 08: count, adapt, differentiate, inject, look into a subspace, merge.

What it replaces: reading PEFT's source to find out whether one has understood it.
How it works: see `course.exercises`. No wrong answer can hide: A *and* B are random and not zero,
α/r differs from case to case and is never whole (section 1 leaves an `s` behind that is 3), in is
not out, a shape comes twice. Layers are tensors, as in the lesson.
What it leaves out: dropout, biases, DoRA.
Where numerics differ: nowhere; any order of multiplication is right within the tolerance.
"""

from __future__ import annotations

from .inject import INJECT
from .layer import COUNT, FORWARD, GRADIENTS
from .update import CAUGHT, MERGE

EXERCISES = [COUNT, FORWARD, GRADIENTS, INJECT, CAUGHT, MERGE]
