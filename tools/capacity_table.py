"""The table of docs/benchmarks.md on what is learned by heart: recall and bits against the numbers
that are trained, and what the base forgets.

How it works: `capacity` gets the runs of benchmarks/tasks/capacity.py and puts the seeds of a kind
together; where nothing has been run yet, a line says so.
"""

from __future__ import annotations

import math
from statistics import mean

HEAD = (
    "| what is trained | numbers | bits of facts a number | rate | recalled, % | bits stored a "
    "number | loss of its own text | look-ups right, % |"
)


def capacity(found: dict | None) -> str:
    """The table, or the command that fills it."""
    if not found:
        return "To come: `python -m benchmarks.tasks.capacity` fills this table."
    kinds: dict[tuple, list[dict]] = {}
    for run in found["runs"]:
        kinds.setdefault((run["method"], str(run["targets"]), run["rank"]), []).append(run)
    lines = [HEAD, "| --- |" + " ---: |" * (HEAD.count("|") - 2)]
    lines += ["| " + " | ".join(_cells(runs)) + " |" for runs in kinds.values()]
    first, seeds = found["runs"][0], sorted({run["seed"] for run in found["runs"]})
    before = first["before"]
    return "\n".join(
        [
            *lines,
            "",
            f"{first['facts']} facts of six digits, {first['steps']} steps of "
            f"{first['batch_size']} rows, {first['asked']} facts asked; mean of {len(seeds)} "
            f"seeds, lowest to highest in brackets; each rate is the best of a grid that is open "
            f"at neither end, chosen with another seed. The base before: loss "
            f"{before['loss']:.3f}, look-ups {100 * before['lookup']:.0f} %. "
            f"torch {found['versions']['torch'].split('+')[0]}, one thread, {found['date']}. "
            "Written by `benchmarks/tasks/capacity.py`.",
        ]
    )


def _cells(runs: list[dict]) -> list[str]:
    """A kind's line: mean over its seeds."""
    first = runs[0]
    offered = 6 * math.log2(10) * first["facts"]
    where = first["targets"]
    place = (
        "all linears" if where == "all" else " and ".join(n.removesuffix("_proj") for n in where)
    )
    lora = f"LoRA {first['rank']} on {place}"
    recalled = [100 * run["recall"] / run["asked"] for run in runs]
    return [
        lora if first["method"] == "lora" else "all weights",
        f"{first['trained']:,}",
        f"{offered / first['trained']:.3f}",
        f"{first['lr']:g}",
        f"{mean(recalled):.0f} ({min(recalled):.0f} to {max(recalled):.0f})",
        f"{mean(run['bits'] / run['trained'] for run in runs):.3f}",
        f"{mean(run['after']['loss'] for run in runs):.2f}",
        f"{mean(100 * run['after']['lookup'] for run in runs):.0f}",
    ]
