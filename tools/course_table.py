"""The course as the README shows it: lessons, the minutes they take, the buttons that open them.

How it works: a lesson's minutes are estimated from its own words and exercises. The buttons lead to
the address in pyproject.toml; while it is unset, a line of text stands in their place.
"""

from __future__ import annotations

import json
from pathlib import Path

from . import project
from .buttons import COLAB_BADGE, all_three, colab, on_colab
from .project import lessons

TITLES = {  # by the name of the notebook, in the order of the course
    "start-here": ("start here", "fine-tune the shipped tiny Llama and see it answer"),
    "gradient-descent": ("gradient descent", "autograd from scratch, noise, momentum, AdamW"),
    "next-token": (
        "next-token prediction",
        "a Llama, piece by piece, until it equals transformers'",
    ),
    "cost": ("what full fine-tuning costs", "parameters, operations, memory, bandwidth"),
    "number-formats": ("number formats", "float64 to 4 bits; training in pure 16 bits"),
    "quantization": ("quantization", "absmax, blocks, NF4's sixteen values, double quantization"),
    "int8": ("LLM.int8()", "outlier features, a product in two parts"),
    "low-rank": ("low rank", "a matrix as a product, SVD, the rank of a real update"),
    "lora": ("LoRA", "derive, inject, train, merge; what it does not buy"),
    "many-adapters": ("many adapters, one model", "switch and mix; DPO with one model in memory"),
    "qlora": ("QLoRA", "the memory ladder, exact merge, silent failures"),
    "choosing-well": ("choosing well", "rank, rate, targets and variants, on tuned runs"),
    "fused-kernels": ("fused kernels", "memory traffic, torch.compile, Triton"),
    "distributed-training": ("distributed training", "data, sharded, tensor and pipeline parallel"),
    "real-gpu": (
        "QLoRA on a real GPU",
        "a published model from the choice to the chat, ours beside the libraries",
    ),
    "audit-the-papers": ("audit the papers", "published numbers computed again; your own data"),
}
COMPUTING = {  # seconds on two cores, where a lesson was timed alone; the rest lie in OTHERS
    "start-here": 16,
    "cost": 14,
    "lora": 65,
    "many-adapters": 41,
    "qlora": 71,
    "real-gpu": 108,
}
OTHERS = (10, 40)
WORDS_A_MINUTE, MINUTES_AN_EXERCISE = 200, 2  # an estimate of reading, not a measurement


def reading_minutes(path: Path) -> int:
    """An estimate of the time a lesson takes a reader, rounded to five minutes.

    It counts the words of text and code, without the setup, the checks and the solutions, and the
    exercises.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    words = exercises = 0
    for cell in cells:
        tags = set(cell["metadata"].get("tags", []))
        exercises += "exercise" in tags
        if not tags & {"badges", "setup", "map", "next", "check", "solution"}:
            words += len("".join(cell["source"]).split())
    minutes = words / WORDS_A_MINUTE + MINUTES_AN_EXERCISE * exercises
    return max(5, 5 * round(minutes / 5))


def time_needed() -> str:
    """How long the course takes, and its first lesson."""
    minutes = [reading_minutes(path) for path in lessons()]
    return (
        f"**Time:** about {round(sum(minutes) / 60)} hours for all lessons, {minutes[0]} minutes "
        "for the first. **You need no GPU** and no download of a model."
    )


def lesson_table() -> str:
    """All lessons with their minutes; those that are there as links, with a Colab button."""
    there = {path.stem[3:]: path for path in lessons()}
    button = project.published()
    rows = [
        f"| no. | lesson | what you do | minutes |{' Colab |' * button}",
        f"| --- | --- | --- | ---: |{' --- |' * button}",
    ]
    for number, (name, (title, told)) in enumerate(TITLES.items()):
        path = there.get(name)
        link = f"[{title}](notebooks/{path.name})" if path else f"{title} (to come)"
        cells = [f"{number:02d}", link, told, str(reading_minutes(path)) if path else "–"]
        rows.append(
            "| "
            + " | ".join(
                cells + ([f"[![Colab][colab]]({colab(path.name)})" if path else "–"] * button)
            )
            + " |"
        )
    seconds = [*COMPUTING.values(), *OTHERS]
    rows += [
        "",
        f"Minutes to read and solve are an estimate: {WORDS_A_MINUTE} words a minute and "
        f"{MINUTES_AN_EXERCISE} minutes an exercise. Computing adds {min(seconds)} to "
        f"{max(seconds)} seconds a lesson on two cores.",
    ]
    if button:
        rows += ["", f"[colab]: {COLAB_BADGE}"]
    return "\n".join(rows)


def _first() -> str:
    return next((path.name for path in lessons()), "00-start-here.ipynb")


def badges() -> str:
    """The button that opens lesson 00 on Colab; without an address, a line that says so."""
    if not project.published():
        return "*Colab: the button appears once the repository has an address.*"
    return on_colab(_first())


def clouds() -> str:
    """The buttons of Colab, Kaggle and Binder; without an address, a line that says so."""
    return all_three(_first())
