"""Lesson 10: precision of the frozen base × rank × method: answers that were measured, memory that
is predicted.

What it replaces: training in the slider's path, and renting a card to see whether a run fits.
How it works: `benchmarks/tasks/sweeps.py precision` trained an adapter for each rank and precision,
with three seeds, and full fine-tuning beside them, and wrote what came out to
`benchmarks/results/sweep-precision.json`; the map shows the mean and the range over the seeds. The
memory is `budget.estimate`'s peak of a step of one row of 512 tokens for the chosen model, with
AdamW in one kernel, and the smallest card of the catalogue that holds it.
What it leaves out: accuracy at 7 billion parameters and more, which the table of a tiny model
cannot tell; 3 and 2 bits on a real card.
Where numerics differ: the closed forms know 4 bits and more; for 3 and 2 bits the codes of the
4-bit budget are shrunk to their size, as `quantize` packs them.
"""

from __future__ import annotations

import functools
import statistics

from ...budget import catalog
from ...budget.estimate import estimate
from . import layout, palette, svg
from .heat import heat
from .stored import stored
from .widget import Explorer, Slider

PRECISIONS = {"bf16": 16, "int8": 8, "nf4": 4, "int3": 3, "int2": 2}  # bits of a code

RANKS = (1, 4, 16, 64)

MODELS = ("tiny", "llama-7b", "llama-13b", "llama-33b", "llama-65b")

FULL = "full fine-tuning"

METHODS = {  # what `estimate` is asked beside method and rank
    FULL: {"checkpointing": False},
    "adapter": {"checkpointing": False},
    "and checkpointing": {"checkpointing": True},
    "and 8-bit AdamW": {"checkpointing": True, "optimizer": "adamw8bit"},
}

# precision → the budget's method; the others are packed in 4 bits or fewer
BASES = {"bf16": "lora", "int8": "int8"}


@functools.cache
def runs() -> dict[tuple, list[dict]]:
    """The shipped table's records by (precision, rank), rank 0 being full fine-tuning. Raises
    MiniloraError where it is missing.
    """
    command = "benchmarks.tasks.sweeps precision"
    found: dict[tuple, list[dict]] = {}
    for run in stored("sweep-precision.json", "runs", command, "an hour")["runs"]:
        found.setdefault((run["precision"], run["rank"]), []).append(run)
    return found


def shares(which: tuple) -> list[float]:
    """Percent of exact answers of each seed."""
    return [100 * run["exact"] / run["asked"] for run in runs().get(which, [])]


@functools.cache
def peak(model: str, precision: str, rank: int, method: str) -> int | None:
    """Bytes at the worst moment of a step; None where the method cannot train such weights."""
    whole = method == FULL
    if whole and precision != "bf16":
        return None
    way = "full-bf16" if whole else BASES.get(precision, "qlora")
    told = estimate(model, method=way, rank=rank, seq=512, foreach=False, **METHODS[method])
    spared = (4 - PRECISIONS[precision]) if way == "qlora" else 0
    return told.peak_allocated - told.setup.shape.linear_parameters * spared // 8


def smallest(size: int) -> str | None:
    """The name of the smallest card that holds so much beside its driver, or None."""
    fitting = [card for card in catalog.GPUS.values() if size + card.context <= card.usable]
    return min(fitting, key=lambda card: (card.usable, card.bandwidth)).name if fitting else None


def compute(precision: str, rank: int, method: str, model: str) -> dict:
    """What was measured for all precisions and ranks, and what each method takes at this one."""
    every = {which: shares(which) for which in runs()}
    needs = {name: peak(model, precision, rank, name) for name in METHODS}
    return {
        "precision": precision,
        "rank": 0 if method == FULL else rank,
        "method": method,
        "model": model,
        "shares": every,
        "peaks": needs,
        "largest": peak(model, "bf16", RANKS[-1], FULL),
    }


def _told(found: dict) -> str:
    """The sentence below the picture."""
    which, own = (found["precision"], found["rank"]), found["peaks"][found["method"]]
    where = f"{found['method']} over {found['precision']}" + (
        f", rank {found['rank']}" if found["rank"] else ""
    )
    got = found["shares"].get(which)
    measured = (
        (
            f"{statistics.mean(got):.0f} % of the cards exactly right ({min(got):.0f} to "
            f"{max(got):.0f} over {len(got)} seeds)"
        )
        if got
        else "not in the table of runs"
    )
    if own is None:
        return (
            f"{where}: cannot be, all weights train and must be numbers of 16 or 32 bits; "
            f"{measured}."
        )
    card = smallest(own)
    held = "no single card holds it" if card is None else f"the smallest card that holds it: {card}"
    return (
        f"{where}, measured on the shipped base: {measured}. Predicted for {found['model']}: "
        f"{_amount(own)} at the worst moment of a step; {held}."
    )


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _bars(peaks: dict[str, int | None], chosen: str, largest: int) -> str:
    """What each method takes at this precision and rank; the chosen one is marked by an arrow."""
    parts, left, room = (
        [svg.text(2, 14, "predicted memory of a step", font_weight="bold")],
        190,
        330,
    )
    for row, (name, size) in enumerate(peaks.items()):
        y = 24 + 26 * row
        parts.append(
            svg.text(
                left - 8,
                y + 14,
                ("▸ " if name == chosen else "") + name,
                "end",
                font_weight="bold" if name == chosen else "normal",
            )
        )
        long = room * (size or 0) / largest
        if size is not None:
            parts.append(
                f'<rect x="{left}" y="{y}" width="{max(long, 1):.1f}" height="18" '
                f'fill="{palette.hue(row)}"/>'
            )
        parts.append(
            svg.text(left + long + 6, y + 14, "not possible" if size is None else _amount(size))
        )
    return svg.canvas(620, 24 + 26 * len(peaks), *parts)


def render(found: dict) -> tuple[str, str]:
    means = {which: statistics.mean(got) for which, got in found["shares"].items() if got}
    notes = {
        which: f"{min(got):.0f}–{max(got):.0f}" for which, got in found["shares"].items() if got
    }
    rows = [*(["fp32"] if any(which[0] == "fp32" for which in means) else []), *PRECISIONS]
    columns = {**{rank: f"rank {rank}" for rank in RANKS}, 0: "full"}
    title = "cards exactly right, in percent: mean and range over the seeds"
    drawn = heat(
        means, rows, columns, (found["precision"], found["rank"]), title=title, notes=notes, wide=76
    )
    return _told(found), layout.below(
        [drawn, _bars(found["peaks"], found["method"], found["largest"])]
    )


EXPLORER = Explorer(
    "qlora",
    compute,
    render,
    [
        Slider("precision", tuple(PRECISIONS), start="nf4", label="precision of the base"),
        Slider("rank", RANKS, start=16, label="rank r"),
        Slider("method", tuple(METHODS), start="adapter", label="method"),
        Slider("model", MODELS, start="llama-7b", label="model of the prediction"),
    ],
)
