"""Lesson 09: two adapters that speak at once, each with its weight, and what is left of the two
tasks.

What it replaces: the hope that the sum of two adapters can do the sum of two tasks.
How it works: `benchmarks/tasks/mixing.py` mixed pairs of adapters at every pair of weights and
asked test questions of both tasks; `benchmarks/results/sweep-mixing.json` keeps how many answers
were right, for three trainings of each adapter. The picture shows both tasks as maps over the two
weights with the chosen point ringed, its scores with their spread, and what the mixture answered to
one question of each task.
What it leaves out: weights and pairs that the table does not have.
"""

from __future__ import annotations

import functools

from ...errors import MiniloraError
from ...system.files import data_folder
from . import layout, svg
from .heat import heat
from .stored import stored
from .widget import Explorer, Slider

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)

PAIRS = ("extract + style", "mood + style", "mood + sums")

SHOWN = 88  # characters of an answer


@functools.cache
def table() -> dict:
    """The shipped table. Raises MiniloraError where it is missing."""
    return stored("sweep-mixing.json", "mixtures", "benchmarks.tasks.mixing", "twenty minutes")


@functools.cache
def scores(pair: str) -> dict[tuple[float, float], tuple[list[float], list[float]]]:
    """(weight of the first, weight of the second) → percent right of the first task and of the
    second, one number a training.
    """
    found: dict = {}
    for run in table()["runs"]:
        if run["adapters"] == pair.split(" + "):
            for first, second, *right in run["points"]:
                both = found.setdefault((first, second), ([], []))
                for each, hits in zip(both, right):
                    each.append(100 * hits / run["asked"])
    if not found:
        raise MiniloraError(
            f"the table has no pair {pair!r}; it has "
            f"{', '.join(' + '.join(run['adapters']) for run in table()['runs'])}"
        )
    return found


@functools.cache
def examples(pair: str) -> tuple[list[str], dict]:
    """What was wanted of the first question of each task, and what each mixture answered, by
    weights.
    """
    from ...text.examples import read_split

    run = next(
        run for run in table()["runs"] if run["adapters"] == pair.split(" + ") and run["seed"] == 0
    )
    wanted = [
        read_split(data_folder() / "tasks" / name, "test")[0]["response"]
        for name in run["adapters"]
    ]
    return wanted, {
        tuple(point[:2]): answers for point, answers in zip(run["points"], run["answers"])
    }


def compute(pair: str, first: float, second: float) -> dict:
    """Scores of all weights of a pair, the chosen weights, and what was wanted and answered
    there.
    """
    wanted, answers = examples(pair)
    return {
        "names": pair.split(" + "),
        "chosen": (first, second),
        "scores": scores(pair),
        "wanted": wanted,
        "answers": answers[first, second],
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _map(found: dict, which: int) -> str:
    """Mean score of one task: the second adapter's weight downwards, the first one's to the
    right.
    """
    first, second = found["names"]
    values = {(b, a): _mean(both[which]) for (a, b), both in found["scores"].items()}
    columns = {weight: f"{weight:g}" for weight in WEIGHTS}
    title = f"{found['names'][which]}: percent right, by weight of {first} → and {second} ↓"
    return heat(values, WEIGHTS, columns, found["chosen"][::-1], title=title)


def _said(found: dict) -> str:
    """Wanted and answered, one question of each task."""
    rows = []
    for name, wanted, answer in zip(found["names"], found["wanted"], found["answers"]):
        for what, text in (
            ("wanted", wanted),
            ("answered", answer.replace("\n", " ") or "(nothing)"),
        ):
            y = 16 + 20 * len(rows)
            rows.append(
                svg.text(2, y, f"{name}, {what}", font_weight="bold")
                + svg.text(156, y, text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
            )
    return svg.canvas(790, 16 + 20 * len(rows), *rows)


def render(found: dict) -> tuple[str, str]:
    here = found["scores"][found["chosen"]]
    told = [
        f"{name} at weight {weight:g}: {_mean(values):.0f} % right ({min(values):.0f} to "
        f"{max(values):.0f})"
        for name, weight, values in zip(found["names"], found["chosen"], here)
    ]
    return "; ".join(told) + ".", layout.below([_map(found, 0), _map(found, 1), _said(found)])


EXPLORER = Explorer(
    "mixing",
    compute,
    render,
    [
        Slider("pair", PAIRS, start="extract + style", label="adapters"),
        Slider("first", WEIGHTS, start=0.5, label="weight of the first"),
        Slider("second", WEIGHTS, start=0.5, label="weight of the second"),
    ],
)
