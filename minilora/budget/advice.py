"""What to change so that a run fits a card: each change with the bytes it saves, and the first
combination that fits.

What it replaces: trying again with half the batch until it no longer runs out of memory.
How it works: every candidate is estimated anew with `estimate`, so no saving is guessed. Candidates
stand in the order of what they cost: first those that leave the result as it is (one kernel for
AdamW, SDPA, checkpointing, fewer rows at a time with accumulation), then those that round more (16
bits, 8-bit averages, int8, 4 bits), then those that learn less (rank, length). The first
combination is built in that order, and what turned out not to be needed is taken out again.
What it leaves out: splitting over several cards, offloading to the host beyond paged averages. What
8-bit and paged averages save is counted by form only: the ledger, against which the rest is checked
within 1 %, cannot run them.
Where numerics differ: peaks are those of `estimate`; the driver's context is a round figure except
on a T4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .catalog import GPU, gpu
from .estimate import Budget, estimate
from .setup import Setup


@dataclass(frozen=True)
class Change:
    """One change: the settings it sets, what it does in words, and the bytes by which the need
    shrinks.
    """

    settings: dict
    text: str
    saves: int
    budget: Budget


@dataclass(frozen=True)
class Advice:
    """Whether a setup fits a card, what single changes save, and the changes that together make it
    fit (None: nothing does).
    """

    card: GPU
    budget: Budget
    need: int
    room: int
    changes: list[Change]
    combination: list[Change] | None
    notes: list[str]

    @property
    def fits(self) -> bool:
        return self.need <= self.room

    @property
    def fitting(self) -> Budget | None:
        """The budget after the combination."""
        if self.fits:
            return self.budget
        return self.combination[-1].budget if self.combination else None


def _halves(value: int, least: int) -> Iterator[int]:
    while value // 2 >= least:
        value //= 2
        yield value


def _parts(rows: int) -> list[int]:
    """Numbers below `rows` that divide it, the largest first: only equal parts make the same
    update.
    """
    small = [n for n in range(1, math.isqrt(rows) + 1) if rows % n == 0]
    return sorted({n for low in small for n in (low, rows // low)} - {rows}, reverse=True)


def _candidates(setup: Setup) -> Iterator[tuple[dict, str]]:
    """Changes in the order of what they cost. Of a row of alternatives the mildest comes first."""
    if setup.attention == "eager":
        yield (
            {"attention": "sdpa"},
            "fused attention instead of eager: the same result, no matrix of scores",
        )
    if setup.trains and setup.optimizer == "adamw" and setup.foreach:
        yield (
            {"foreach": False},
            "AdamW in one kernel (fused=True): the same result without a parameter-sized temporary",
        )
    if setup.trains and not setup.checkpointing:
        yield {"checkpointing": True}, "checkpointing: the same result, about a third more time"
    for batch in _parts(setup.batch):
        yield (
            {"batch": batch},
            f"{batch} row{'s' if batch > 1 else ''} at a time, accumulated over "
            f"{setup.batch // batch}: the same update",
        )
    if (
        setup.adapters
        and setup.precision in ("fp32", "autocast")
        or setup.method == "inference"
        and setup.precision == "fp32"
    ):
        yield {"precision": "bf16"}, "the base in 16 bits"
    if setup.trains and setup.optimizer == "adamw":
        yield {"optimizer": "adamw8bit"}, "AdamW's averages in 8 bits"
        yield (
            {"optimizer": "paged_adamw8bit"},
            "AdamW's averages in 8 bits, paged out to the host when the card is full",
        )
    order = ["full", "mixed", "full-bf16", "lora", "int8", "qlora"]
    for method in order[order.index(setup.method) + 1 :] if setup.method in order else ():
        if method not in ("mixed",):
            yield {"method": method}, f"method {method}"
    for rank in _halves(setup.rank, 1) if setup.adapters else ():
        yield {"rank": rank}, f"rank {rank}: a smaller adapter"
    for seq in _halves(setup.seq, 64):
        yield {"seq": seq}, f"length {seq}: longer examples are cut"


def changes(setup: Setup, card: str | GPU | None = None) -> list[Change]:
    """Every single change that saves something, with the bytes it saves, in the order of what it
    costs.
    """
    now = estimate(setup)
    found = []
    for settings, text in _candidates(setup):
        then = estimate(setup, **settings)
        saves = now.needs(card) - then.needs(card)
        if saves > 0:
            found.append(Change(settings, text, saves, then))
    return found


def advise(model: str | Setup, card: str | GPU, **settings) -> Advice:
    """Does it fit `card`, and if not, what would make it fit? Settings as `estimate`."""
    card, budget = gpu(card), estimate(model, **settings)
    setup, need = budget.setup, budget.needs(card)
    notes = []
    if setup.product == 2 and setup.precision != "fp16" and "bf16" not in card.rates:
        scale = " with a loss scale" if setup.trains else ""
        notes.append(f"{card.name} has no bf16 units; use fp16{scale} (the same bytes), or fp32")
    single = changes(setup, card)
    combination = [] if need <= card.usable else _combine(setup, card)
    return Advice(card, budget, need, card.usable, single, combination, notes)


def _combine(setup: Setup, card: GPU) -> list[Change] | None:
    """Change after change, the mildest first, until it fits; then without those that it fits
    without.
    """
    taken: dict = {}
    texts: dict = {}
    current = estimate(setup)
    for settings, text in _candidates(setup):
        ((name, value),) = settings.items()
        tried = {**taken, name: value}
        then = estimate(setup, **_ordered(tried))
        if then.needs(card) >= current.needs(card):
            continue
        taken, current = tried, then
        texts[name] = text
        if current.needs(card) <= card.usable:
            return _listed(setup, _needed(setup, card, taken), texts, card)
    return None


def _ordered(settings: dict) -> dict:
    """A changed method brings its own precision: what was said of the precision before falls away
    with it.
    """
    return {
        name: value
        for name, value in settings.items()
        if not (name == "precision" and "method" in settings)
    }


def _needed(setup: Setup, card: GPU, taken: dict) -> dict:
    """`taken` without what is not needed, the dearest tried first."""
    for name in reversed(list(taken)):
        fewer = {other: value for other, value in taken.items() if other != name}
        if estimate(setup, **_ordered(fewer)).needs(card) <= card.usable:
            taken = fewer
    return taken


def _listed(setup: Setup, taken: dict, texts: dict, card: GPU) -> list[Change]:
    """The changes one after the other, each with what it saves on top of those before."""
    found, done, before = [], {}, estimate(setup).needs(card)
    for name, value in _ordered(taken).items():
        done[name] = value
        then = estimate(setup, **done)
        found.append(Change({name: value}, texts[name], before - then.needs(card), then))
        before = then.needs(card)
    return found
