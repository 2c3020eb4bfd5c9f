"""The exercises of lesson 09: rows, mix, log-probability, DPO's loss, advantage.

What it replaces: trusting that a trainer's loss is the paper's.
How it works: see `course.exercises`. Ranks, weights and scales all differ, one weight is
negative; no log-probability is 0; β is not 1; no two adapters are alike.
What it leaves out: batches of answers of unequal length (the lesson pads them), label smoothing,
PPO.
Where numerics differ: nowhere; mixtures are compared by their product B·A, so any order of the
stacked rows is right.
"""

from __future__ import annotations

from .adapters import MIX, ROWS
from .preference import ADVANTAGE, DPO, LOGPROB

EXERCISES = [ROWS, MIX, LOGPROB, DPO, ADVANTAGE]
