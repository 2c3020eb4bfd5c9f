"""Lesson 00: a minute of fine-tuning by rank and by precision of the frozen base, from a table of
runs that were really made.

What it replaces: training in the slider's path, which would take a minute a move.
How it works: `benchmarks/tasks/taste.py` trained one adapter for each rank and precision and wrote
what came out to `benchmarks/results/taste.json`. The picture shows all runs as a map of exact
answers with the chosen one ringed, its loss by step, and the card it wrote for one story of the
test split.
What it leaves out: runs that the table does not have.
"""

from __future__ import annotations

import functools

from ...errors import MiniloraError
from ...system.files import data_folder
from . import layout, svg
from .heat import heat
from .stored import stored
from .widget import Explorer, Slider

RANKS = (1, 2, 4, 8, 16, 32)

PRECISIONS = ("fp32", "nf4", "int3", "int2")


@functools.cache
def table() -> dict:
    """The shipped table. Raises MiniloraError where it is missing."""
    return stored("taste.json", "runs", "benchmarks.tasks.taste", "ten minutes")


@functools.cache
def runs() -> dict[tuple[int, str], dict]:
    """The table's records by rank and precision."""
    return {(run["rank"], run["precision"]): run for run in table()["runs"]}


@functools.cache
def question() -> dict:
    """The test example whose answer each run stored first."""
    from ...text.examples import read_split

    return read_split(data_folder() / "tasks" / "extract", "test")[0]


def compute(rank: int, precision: str) -> dict:
    """The chosen run, all runs for the map, and the answer that was wanted."""
    if (rank, precision) not in runs():
        raise MiniloraError(
            f"the table has no run of rank {rank} over {precision}; `python -m "
            "benchmarks.tasks.taste` makes the missing ones"
        )
    return {"run": runs()[rank, precision], "runs": runs(), "wanted": question()["response"]}


def _map(every: dict, chosen: tuple[int, str]) -> str:
    """Percent of exact answers, a row per precision, a column per rank, the chosen run ringed."""
    shares = {
        (precision, rank): 100 * run["exact"] / run["asked"]
        for (rank, precision), run in every.items()
    }
    return heat(
        shares,
        PRECISIONS,
        {rank: f"rank {rank}" for rank in RANKS},
        chosen[::-1],
        title="cards exactly right, in percent",
    )


def _card(wanted: str, answer: str) -> str:
    """The card that was asked for and the one that was written."""
    shown = answer if len(answer) <= 92 else answer[:91] + "…"
    rows = [
        svg.text(2, 16, "wanted", font_weight="bold"),
        svg.text(70, 16, wanted),
        svg.text(2, 38, "written", font_weight="bold"),
        svg.text(70, 38, shown),
    ]
    return svg.canvas(760, 46, *rows)


def render(found: dict) -> tuple[str, str]:
    run = found["run"]
    chosen, losses = (run["rank"], run["precision"]), run["loss"]
    top = max(max(r["loss"]) for r in found["runs"].values())
    label = (
        f"Rank {chosen[0]} over {chosen[1]}: {run['exact']} of {run['asked']} unseen cards "
        f"exactly right after {run['steps']} steps. "
        f"{run['trained']:,} numbers trained, beside linear layers of "
        f"{run['linear_bytes'] / 1e6:.2f} MB."
    )
    curve = svg.lines(
        {"loss": (range(1, len(losses) + 1), losses)},
        x_label="step",
        y_label="loss",
        x_range=(1, len(losses)),
        y_range=(0, top),
        width=620,
        height=200,
    )
    return label, layout.below(
        [_map(found["runs"], chosen), curve, _card(found["wanted"], run["answers"][0])]
    )


EXPLORER = Explorer(
    "taste",
    compute,
    render,
    [
        Slider("rank", RANKS, start=8, label="rank r"),
        Slider("precision", PRECISIONS, start="nf4", label="precision of the frozen base"),
    ],
)
