"""What `benchmarks/gpu/gpu.py` measured on graphics cards, read from its files and shown with card,
versions and date.

What it replaces: figures retyped from a terminal.
How it works: `read` takes the files `gpu-*.json` of a folder whose device is a card and whose
shapes are real; runs on a processor and in small are no results. `table` makes a line of each
contender and each training that is done, and of what did not run, with its reason.
What it leaves out: judging; the lesson does that, with `trained`.
"""

from __future__ import annotations

import json
from pathlib import Path

from ...system.tables import Table
from ..catalog import GIB


def on_card(run: dict) -> bool:
    """Whether a results file is of a card and of the real shapes."""
    return "capability" in run.get("device", {}) and "--tiny" not in run.get("command", "")


def read(folder: str | Path) -> list[dict]:
    """The results of every card, by file name; an empty list if nothing was measured."""
    found = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(Path(folder).glob("gpu-*.json"))
    ]
    return [run for run in found if on_card(run)]


def trained(run: dict, part: str) -> list[dict]:
    """The trainings of a part (b7, b20, b65) that were done under their cap and whose loss fell."""
    trainings = run["parts"].get(part, {}).get("trainings", [])
    return [
        each
        for each in trainings
        if each["status"] == "done" and each["under_cap"] and each["falls"]
    ]


def _line(name: str, who: str, each: dict) -> list[str]:
    if each["status"] != "done":
        return [name, who, "–", "–", "–", f"{each['status']}: {each.get('error', '')}"]
    speed = f"{each['tokens_per_second']:,.0f}" if "tokens_per_second" in each else "–"
    return [
        name,
        who,
        speed,
        f"{each['allocated'] / GIB:.2f}",
        f"{each['predicted'] / GIB:.2f}",
        f"loss {each['losses'][0]:.2f} → {each['losses'][-1]:.2f}",
    ]


def table(run: dict) -> Table:
    """One card's results."""
    rows = []
    for part in run["parts"].values():
        name = part["settings"]["shape"]["name"]
        rows += [_line(name, who, each) for who, each in part.get("contenders", {}).items()]
        rows += [
            _line(name, f"rank {each['rank']} under {each['cap']['GiB']:.2f} GiB", each)
            for each in part.get("trainings", [])
        ]
        rows += [_line(name, "–", part)] if "error" in part else []
    card, versions = run["device"], run["versions"]
    note = (
        f"{card['name']}, {card['memory_GiB']} GiB; torch {versions['torch']}, transformers "
        f"{versions['transformers']}, peft {versions['peft']}, bitsandbytes "
        f"{versions['bitsandbytes']}; {run['date']}"
    )
    return Table(
        ["model", "who", "tokens/s", "peak, GiB", "predicted", "what came out"], rows, note
    )
