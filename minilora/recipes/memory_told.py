"""A run's memory as it was foreseen, beside what the process really held.

What it replaces: reading `top` while a run goes on.
How it works: before the model is loaded, `foresee` counts the process at the longest row that the
run will take (`minilora.budget.process`) and notes what this process has held at the most so far.
At the end `Foreseen.beside` asks the system again.
What it leaves out: graphics cards, whose memory is not the process's; a process that had held more
before the run, as a notebook's may: there nothing is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..system import heap
from ..system.memory import most_held
from .settings import Settings

# a process with holes in its heap, to one without: at the most 1.31 where it was measured
HOLES = 1.35


@dataclass(frozen=True)
class Foreseen:
    """Bytes of the process: what was held before the run, and what it should come to."""

    before: int | None
    predicted: int | None

    def beside(self) -> dict[str, int] | None:
        """{"predicted", "measured"} in bytes; None where one of them is not known."""
        measured = most_held()
        if self.predicted is None or measured is None or measured == self.before:
            return None
        return {"predicted": self.predicted, "measured": measured}


def avoid_holes(foreseen: Foreseen, free: int | None, say: Callable[[str], None]) -> None:
    """Give up time for memory where the heap's holes may not fit. free: bytes, or None where the
    system does not tell.
    """
    if foreseen.predicted is None or free is None:
        return
    if HOLES * foreseen.predicted - (foreseen.before or 0) > free and heap.without_holes():
        say("memory is short: large blocks go back at once, so a step may take a third longer")


def longest_row(settings: Settings, rows: Sequence) -> int:
    """Tokens of the longest row that the run takes: of all rows, or of the steps' own where they
    do not come to see all.
    """
    from ..train.batches import Batches

    taken = settings.batch * settings.accumulate
    if settings.steps * taken >= len(rows):
        return max(len(ids) for ids, _ in rows)
    batches = Batches(rows, taken, settings.seed)
    return max(len(ids) for step in range(settings.steps) for ids, _ in batches(step))


def learned_at_most(settings: Settings, rows: Sequence) -> int:
    """Tokens that the loss of one batch counts at the most: only these get logits in our Llama."""
    from ..text.rows import IGNORE

    each = max(sum(label != IGNORE for label in labels[1:]) for _, labels in rows)
    return settings.batch * each


def foresee(settings: Settings, folder: Path, device: str, rows: Sequence) -> Foreseen:
    """Count the run before its model is loaded. What cannot be counted is no reason not to train:
    then nothing is told.
    """
    if device.startswith("cuda"):
        return Foreseen(None, None)
    from ..budget.estimate import estimate
    from ..budget.forms.variants import added as margin
    from ..budget.process import process
    from .memory_warning import added, setup_of

    try:
        setup = setup_of(settings, folder, device, longest_row(settings, rows))
        if setup.library == "minilora":
            learned = min(setup.batch * (setup.seq - 1), learned_at_most(settings, rows))
            setup = setup.but(learned=learned)
        told = estimate(setup)
        predicted = process(told, margin(told.setup, *(added(settings) or ()))).peak
    except Exception:  # as in `memory_warning.warn`
        return Foreseen(None, None)
    return Foreseen(most_held(), predicted)


def line(memory: dict[str, int]) -> str:
    """What a run's end says: measured, and predicted with its error."""
    measured, predicted = memory["measured"], memory["predicted"]
    return (
        f"memory of the process at the most {measured / 1e9:.2f} GB; predicted "
        f"{predicted / 1e9:.2f} GB ({100 * (predicted / measured - 1):+.0f} %)"
    )
