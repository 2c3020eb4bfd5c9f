"""A budget as text: its parts in GB and GiB, or with the formula behind each number.

What it replaces: the one line of accelerate's `estimate-memory`, which does not say what its number
is made of.
How it works: one row for each part, then three sums that must not be confused: all parts together,
the most that ever stands at once (and when), and what a card must have beside it for the driver and
the allocator.
What it leaves out: other units. GB is 10⁹ bytes, GiB 2³⁰; both stand beside each other, since
vendors use one and tools the other.
Where numerics differ: two or three decimals are shown; a small run is told in MB (10⁶ bytes) and
MiB (2²⁰), and every cell says which.
"""

from __future__ import annotations

from ..system.tables import Table
from .catalog import GPU
from .estimate import Budget
from .process import process

GB, GIB, MB, MIB = 10**9, 2**30, 10**6, 2**20


def decimal(size: float, scale: float | None = None) -> str:
    """Bytes in GB, or in MB where `scale` (the size itself, if not given) is below half a GB:
    "3.238 GB", "0.66 MB".
    """
    return _said(size, scale, ((GB, "GB"), (MB, "MB")))


def binary(size: float, scale: float | None = None) -> str:
    """Bytes in GiB or MiB, by the same rule."""
    return _said(size, scale, ((GIB, "GiB"), (MIB, "MiB")))


def _said(size: float, scale: float | None, units: tuple) -> str:
    each, name = units[abs(size if scale is None else scale) < GB / 2]
    return f"{size / each:,.{2 if each < GB or abs(size) >= 10 * each else 3}f} {name}"


def headline(told: Budget) -> str:
    """The run in one line: what is asked."""
    setup = told.setup
    names = [each.name for each in setup.shape.linears()]
    where = "all linear layers" if len(setup.targets) == len(names) else ", ".join(setup.targets)
    adapter = f", rank {setup.rank} on {where}" if setup.adapters else ""
    saving = ", checkpointing" if setup.checkpointing and setup.trains else ""
    optimizer = f", {setup.optimizer}" if setup.trains else ""
    share = (
        f"{told.trainable:,} of {told.parameters:,} parameters learn"
        if setup.trains
        else f"{told.parameters:,} parameters"
    )
    return (
        f"{setup.method} on {setup.shape.name}{adapter}: batch {setup.batch} × {setup.seq} "
        f"tokens{saving}, {setup.precision}{optimizer}; {share}"
    )


def sums(told: Budget, card: GPU | None = None) -> list[tuple[str, int, str]]:
    """The three totals: (name, bytes, what it is); the last for `card`, or for a recent one."""
    found = [
        ("all parts", told.total, "more than ever stands at once"),
        ("peak allocated", told.peak_allocated, f"the most at one time, in the {told.moment}"),
    ]
    if told.setup.device == "cpu":
        whole = process(told)
        found += [
            ("libraries", whole.libraries, "interpreter, torch, tokenizer, products' buffers"),
            (
                "process",
                whole.peak,
                f"the most at one time, in {whole.moment}; holes of the heap not counted",
            ),
        ]
    if told.needs(card) != told.peak_allocated:
        found.append(
            (
                "on the card",
                told.needs(card),
                "with the driver's context and whole segments of the allocator",
            )
        )
    return found


def table(told: Budget, explain: bool = False, card: GPU | None = None) -> Table:
    """Parts and sums; the last column says what a part is, or with `explain` its formula with the
    numbers filled in.
    """
    shown = [(name, part) for name, part in told.parts.items() if part.bytes]
    rows = [
        [
            name + (" (host)" if part.host else ""),
            part.bytes,
            part.formula if explain else part.what,
        ]
        for name, part in shown
    ]
    for name, size, what in sums(told, card):
        rows.append(
            [
                name,
                size,
                told.moments[told.moment].formula if explain and name == "peak allocated" else what,
            ]
        )
    rows = [
        [name, decimal(size, told.total), binary(size, told.total), what]
        for name, size, what in rows
    ]
    return Table(["part", "10⁹ or 10⁶", "2³⁰ or 2²⁰", "formula" if explain else "what it is"], rows)
