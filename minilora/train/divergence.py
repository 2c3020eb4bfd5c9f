"""Did a run make its model worse, though every number in it was finite?

What it replaces: an adapter that answers with noise, kept beside an exit code of 0.
How it works: the rows of step 1 gave a loss before the first update. After the last one the same
rows are asked again, so that no chance of which row came when is in the comparison. A run that
learned anything has a lower loss on rows that it learned from. It diverged if that loss is higher
by a nat, each token being e times less likely than before, and the last steps were not better than
the first, for a row alone may be an odd one. It diverged, too, if that loss is higher at all and
above ln V, what guessing among the V tokens would give.
What it leaves out: a run that learned its own rows and forgot the rest; that is what validation
rows are for.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import warnings
from collections.abc import Iterator, Sequence

from ..errors import MiniloraWarning

FAR = 1.0  # nats a token
ROUNDING = 0.1  # nats: what half precision and dropout may move the loss of unchanged weights by
LAST = 5  # steps, the late ones whose losses are looked at; of a short run the second half


class Diverged(MiniloraWarning):
    """Says of a run that has ended that it made its model worse."""


def diverged(losses: Sequence[float], after: float, vocabulary: int | None, lr: float) -> str:
    """What to say of a run with these losses by step, after which the rows of step 1 have the loss
    `after`; empty if it did not diverge. vocabulary: V, where it is known.
    """
    before, late = losses[0], statistics.median(losses[-min(LAST, max(1, len(losses) // 2)) :])
    guessing = math.log(vocabulary) if vocabulary else math.inf
    far = after > before + FAR and late >= before
    noise = after > guessing and after > before + ROUNDING
    if math.isfinite(after) and not far and not noise:
        return ""
    than = f", and guessing gives {guessing:.2f}" if noise else ""
    return (
        f"the run diverged: on the rows of its first step the loss was {before:.2f} and is "
        f"{after:.2f} after the last{than}; begin anew with a lower learning rate (now {lr:g})"
    )


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Inside, `fit` tells of it by its history alone, for whoever says it in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Diverged)
        yield
