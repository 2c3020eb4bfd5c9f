"""What two adapters are worth when they speak together, by weight (lesson 09).
`python -m benchmarks.tasks.mixing`

What it replaces: nothing. How it works: for pairs of the shipped adapters and every pair of weights
from 0 to 1 in quarters, `lora.mix_adapters` (method cat, which is exact) makes one adapter of both,
and test questions of either task are answered. Three trainings of each adapter (adapters.py makes
what is missing; seed 0 is the shipped one), each asked questions of its own, give the spread.
Weights (1, 0) are one adapter alone, (1, 1) both in full.
What it leaves out: mixtures of three, and mixing by linear or svd.
Where numerics differ: see kit/short_runs.py.
"""

from __future__ import annotations

import itertools
import time

from benchmarks.kit.short_runs import arguments, sweep
from benchmarks.tasks import adapters
from minilora.course.explore.mixing import PAIRS, WEIGHTS

SEEDS = (0, 1, 2)
ASKED = 10


def one_pair(recipe: dict) -> dict:
    """All weights of one pair, trained with one seed: `points` are [weight, weight, right of the
    first task, right of the second].
    """
    import torch

    torch.set_num_threads(1)
    from minilora import lora
    from minilora.llama import Llama
    from minilora.system.files import data_folder
    from minilora.text import Tokenizer, read_split
    from minilora.train.scoring import exact_match

    began, folder = time.perf_counter(), data_folder()
    model, tokenizer = (
        Llama.from_pretrained(folder / "base"),
        Tokenizer.from_pretrained(folder / "base"),
    )
    for name in recipe["adapters"]:
        lora.load_adapter(model, adapters.folder_of(name, recipe["seed"]), name)
    first = recipe["seed"] * recipe["asked"]
    asked = [
        read_split(folder / "tasks" / name, "test")[first : first + recipe["asked"]]
        for name in recipe["adapters"]
    ]
    points, answers = [], []
    for weights in itertools.product(WEIGHTS, repeat=2):
        lora.mix_adapters(model, recipe["adapters"], weights, "mixture")
        scored = [exact_match(model, tokenizer, examples) for examples in asked]
        lora.remove_adapter(model, "mixture")
        points.append([*weights, *(hits for hits, _, _ in scored)])
        answers.append([given[0] for _, _, given in scored])
    return {
        **recipe,
        "points": points,
        "answers": answers,
        "seconds": round(time.perf_counter() - began, 1),
    }


def main(options=None) -> None:
    options = options or arguments(__doc__.splitlines()[0], "sweep-mixing.json").parse_args()
    adapters.ensure(
        list(SEEDS), tuple(sorted({name for pair in PAIRS for name in pair.split(" + ")}))
    )
    recipes = [
        {"adapters": pair.split(" + "), "seed": seed, "asked": ASKED}
        for seed in SEEDS
        for pair in PAIRS
    ]
    sweep(
        options.out,
        "exact answers of two tasks when two adapters of rank 4 are mixed by weight",
        recipes,
        options.jobs,
        one_pair,
    )


if __name__ == "__main__":
    main()
