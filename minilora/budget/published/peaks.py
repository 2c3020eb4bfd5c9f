"""Peaks that others measured on real cards, beside what this package predicts for the same runs.

What it replaces: a promise that the estimate is good.
How it works: every `Measurement` (`peaks.toml`) has the figure, where it was published, what was
said about the run (`stated`), what we had to assume (`assumed`), and the settings that follow.
`compared()` computes the prediction and its error anew each time; `why` says what the difference
comes from. The program that was measured is not the one that `estimate` counts; `program` (see
`programs`) goes through its own source and gives the bytes that it should have shown, part by part,
and the error is shown with them as well.
What it leaves out: figures without a model, a method or a length; multi-GPU runs; our own runs
(`benchmarks/memory/memory.py --gpu` adds those).
Where numerics differ: GB is 10⁹ bytes and GiB 2³⁰, as each source has it. Prints of `nvidia-smi`
include the driver's context, `max_memory_allocated` does not: `counts` says which of the two is
compared. Some sources round to whole GB.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..catalog import GIB
from ..estimate import Budget, estimate
from ..setup import Setup
from ..shapes import Shape
from . import programs

UNITS = {"GB": 10**9, "GiB": GIB}


@dataclass(frozen=True)
class Measurement:
    """A published peak and the run it belongs to. bound: an upper limit, not a measurement; it
    counts in no mean error.
    """

    what: str
    model: str | Shape
    settings: dict = field(hash=False)
    peak: float
    unit: str
    source: str
    stated: str
    assumed: str
    why: str
    counts: str = "allocated"  # or "card": with workspaces, whole segments and the driver's context
    bound: bool = False
    # (setup, prediction) → what the measured program held, by part
    program: Callable[[Setup, int], programs.Parts] | None = None


@dataclass(frozen=True)
class Comparison:
    """A measurement beside the prediction; bytes."""

    measurement: Measurement
    measured: int
    predicted: int
    explained: int  # the sum of what the measured program held, by its own source

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def error_explained(self) -> float:
        return self.explained / self.measured - 1


def measurements() -> list[Measurement]:
    """All published figures, by source, from `peaks.toml`."""
    told = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    shapes = {
        name: Shape(name, **fields["sizes"], source=fields["source"])
        for name, fields in told["shapes"].items()
    }
    found = []
    for group in told["groups"]:
        shared = {key: value for key, value in group.items() if key != "runs"}
        for run in group["runs"]:
            fields = shared | run
            fields["settings"] = group.get("settings", {}) | run.get("settings", {})
            fields["model"] = shapes.get(run["model"], run["model"])
            fields["source"] = told["sources"][fields["source"]]
            if "program" in fields:
                fields["program"] = getattr(programs, fields["program"])
            found.append(Measurement(**fields))
    return found


# ---------------------------------------------------------------------------------------- comparing


def compare(measurement: Measurement) -> Comparison:
    """The prediction for one measurement."""
    budget: Budget = estimate(measurement.model, **measurement.settings)
    predicted = budget.with_context if measurement.counts == "card" else budget.peak_allocated
    held = (
        sum(measurement.program(budget.setup, predicted).values())
        if measurement.program
        else predicted
    )
    return Comparison(
        measurement, round(measurement.peak * UNITS[measurement.unit]), predicted, held
    )


def compared() -> list[Comparison]:
    """All figures with their predictions."""
    return [compare(each) for each in measurements()]


def mean_error(rows: list[Comparison], explained: bool = False) -> float:
    """Mean absolute error over measurements; bounds are left out."""
    errors = [
        abs(row.error_explained if explained else row.error)
        for row in rows
        if not row.measurement.bound
    ]
    return sum(errors) / len(errors)


def table(rows: list[Comparison] | None = None) -> str:
    """Measured beside predicted, as text."""
    lines = [f"{'':52} {'measured':>11} {'predicted':>11} {'error':>7} {'explained':>10}"]
    for row in rows or compared():
        m, unit = row.measurement, UNITS[row.measurement.unit]
        known = f"{row.error_explained:+10.1%}" if m.program else ""
        sign = "≤" if m.bound else " "
        lines.append(
            f"{m.what:52} {sign}{m.peak:7.2f} {m.unit:3} {row.predicted / unit:7.2f} "
            f"{m.unit:3} {row.error:+7.1%} {known:>10}  {m.why}"
        )
    return "\n".join(lines)
