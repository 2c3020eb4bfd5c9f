"""Which rows each step takes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from ..errors import MiniloraError
from ..text.rows import Row

# steps whose rows are sorted by length together: wider saves padding, narrower mixes better
POOL = 16


class Batches:
    """`batches(step)` → the rows of that step. A function of the rows, the seed and the step, so
    nothing need be saved.
    """

    def __init__(self, rows: Sequence[Row], size: int, seed: int):
        if not rows:
            raise MiniloraError("there are no rows to train on; give at least one example")
        self.rows, self.size, self.seed = rows, size, seed
        self.per_epoch = math.ceil(len(rows) / size)
        self._epoch = -1
        self._order: list[list[int]] = []

    def _shuffle(self, epoch: int) -> list[list[int]]:
        dice = random.Random(f"{self.seed}/{epoch}")
        order = list(range(len(self.rows)))
        dice.shuffle(order)
        width = self.size * POOL
        batches = []
        for start in range(0, len(order), width):
            pool = sorted(order[start : start + width], key=lambda i: len(self.rows[i][0]))
            batches += [pool[i : i + self.size] for i in range(0, len(pool), self.size)]
        dice.shuffle(batches)
        return batches

    def __call__(self, step: int) -> list[Row]:
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return [self.rows[i] for i in self._order[position]]
