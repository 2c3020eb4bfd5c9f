"""The long tables under lessons 08 and 10: many short runs of the shipped base, three seeds each.
`python -m benchmarks.tasks.sweeps`

What it replaces: one run on which a lesson would rest its case.
How it works: parts, one after the other. `rates` tries learning rates with a seed that is used
nowhere else; `ranks` takes for each task, method and rank the rate with the lowest validation loss,
and compares LoRA of rank 1 to 64 (α stays 16) with full fine-tuning and with small models that have
as many numbers in all as LoRA trains; `update` looks at where the two kinds of update lie;
`precision` puts adapters of four ranks over the base at 16, 8, 4, 3 and 2 bits. Records are kept as
they end, so a sweep that was broken off goes on where it stopped.
What it leaves out: pretrained small models (the shipped base has no smaller sister); runs to the
end.
Where numerics differ: see kit/short_runs.py.

    python -m benchmarks.tasks.sweeps [rates ranks update precision] [--jobs 2]
"""

from __future__ import annotations

import argparse
import math
import time

from benchmarks.kit.short_runs import RECIPE, RESULTS, sweep

RANKS = (1, 2, 4, 8, 16, 32, 64)
SEEDS = (0, 1, 2)
TRIED = 9  # the seed of the rates
STEPS = {"extract": 60, "style": 60}
RATES = {
    "lora": (1e-3, 2e-3, 4e-3, 8e-3),
    "full": (2.5e-4, 5e-4, 1e-3, 2e-3),
    "small": (1e-3, 3e-3, 1e-2),
}
# A Llama of as many numbers, embedding included, as LoRA of that rank trains on all layers of the
# base, within 0.4 %.
SHAPES = {
    8: {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 7,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    64: {
        "hidden_size": 160,
        "intermediate_size": 296,
        "num_hidden_layers": 4,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
}
LONGER = 5  # small models are also given this many times the steps: theirs are cheap
PARTS = ["rates", "ranks", "update", "precision"]
BITS = ("bf16", "int8", "nf4", "int3", "int2")
MAP_RANKS = (1, 4, 16, 64)


def recipe(task: str, method: str, rank: int, lr: float, seed: int, **more) -> dict:
    """A recipe of short_runs. `rank` is LoRA's; of a small model, the one whose number of numbers
    it has; 0 for full fine-tuning.
    """
    found = {
        **RECIPE,
        "task": task,
        "method": method,
        "rank": rank,
        "precision": "fp32",
        "steps": STEPS[task],
        "lr": lr,
        "seed": seed,
        "asked": 100,
    }
    return found | ({"shape": SHAPES[rank]} if method == "small" else {}) | more


def rates() -> list[dict]:
    """Rates for every task and method, for LoRA at a low, a middle and a high rank."""
    ranks = {"lora": (1, 8, 64), "full": (0,), "small": tuple(SHAPES)}
    return [
        recipe(task, method, rank, lr, TRIED)
        for task in STEPS
        for method in RATES
        for rank in ranks[method]
        for lr in RATES[method]
    ]


def best(tried: list[dict], task: str, method: str, rank: int = 0) -> float:
    """The rate with the lowest validation loss at that rank, or at the nearest one that was tried
    (on a scale of doublings).
    """
    runs = [run for run in tried if (run["task"], run["method"]) == (task, method)]
    near = min(
        {run["rank"] for run in runs},
        key=lambda tested: abs(math.log2(max(tested, 1) / max(rank, 1))),
    )
    return min((run for run in runs if run["rank"] == near), key=lambda run: run["valid_loss"])[
        "lr"
    ]


def ranks(tried: list[dict]) -> list[dict]:
    """LoRA by rank, full fine-tuning and small models, at the rates that did best."""
    found = []
    for seed in SEEDS:
        for task in STEPS:
            kinds = [("lora", rank, {}) for rank in RANKS] + [("full", 0, {})]
            kinds += [
                ("small", rank, more)
                for rank in SHAPES
                for more in ({}, {"steps": LONGER * STEPS[task]})
            ]
            found += [
                recipe(task, method, rank, best(tried, task, method, rank), seed, **more)
                for method, rank, more in kinds
            ]
    return found


def updates(tried: list[dict]) -> list[dict]:
    """Pairs of a full and a LoRA run with the same rows."""
    return [
        {
            "task": task,
            "rank": 8,
            "steps": STEPS[task],
            "lr": best(tried, task, "lora", 8),
            "lr_full": best(tried, task, "full"),
            "seed": seed,
        }
        for task in STEPS
        for seed in SEEDS
    ]


def precisions(tried: list[dict]) -> list[dict]:
    """Rank by bits of the frozen base on `extract`, and full fine-tuning in fp32 and in bf16
    alone.
    """
    found = []
    for seed in SEEDS:
        for rank in MAP_RANKS:
            found += [
                recipe(
                    "extract",
                    "lora",
                    rank,
                    best(tried, "extract", "lora", rank),
                    seed,
                    precision=bits,
                )
                for bits in BITS
            ]
        found += [
            recipe("extract", "full", 0, best(tried, "extract", "full"), seed, precision=bits)
            for bits in ("fp32", "bf16")
        ]
    return found


def update_run(plan: dict) -> dict:
    """Train in full and with LoRA; for each linear layer, how wide W and its update are, and how
    much of the update LoRA's directions hold.
    """
    import torch

    torch.set_num_threads(1)
    from benchmarks.kit.short_runs import adapted
    from minilora import lora, train
    from minilora.system.files import data_folder
    from minilora.text import encode_rows, read_split

    began = time.perf_counter()
    common = {**RECIPE, "precision": "fp32", **plan}
    model, tokenizer = adapted(common | {"method": "full"})
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = encode_rows(read_split(data_folder() / "tasks" / plan["task"], "train"), tokenizer)
    settings = dict(
        steps=plan["steps"], batch_size=RECIPE["batch_size"], seed=plan["seed"], progress=False
    )
    train.fit(model, rows, lr=plan["lr_full"], **settings)
    student, _ = adapted(common | {"method": "lora"})
    train.fit(student, rows, lr=plan["lr"], **settings)
    weights = dict(model.named_parameters())
    layers = {}
    for path, layer in lora.adapted_layers(student).items():
        W = start[path + ".weight"]
        change = weights[path + ".weight"].detach() - W
        layers[path] = compared(W, change, layer.delta("default").detach(), plan["rank"])
    return {**plan, "layers": layers, "seconds": round(time.perf_counter() - began, 1)}


def compared(W, change, delta, rank: int) -> dict[str, float]:
    """Widths of W and of the full update, and shares of ‖full update‖² (Hu et al. 2021, §7.2 and
    7.3 ask the same of rank and W).

    `inside`: in LoRA's rank columns and rows at once; `columns`, `rows`: in one of them; `best`: in
    its own first `rank` directions; `by_chance` and `columns_by_chance`: what random directions
    hold on average.
    """
    import torch

    from minilora import lowrank

    U, _, Vt = torch.linalg.svd(delta.double(), full_matrices=False)
    U, Vt, change = U[:, :rank], Vt[:rank], change.double()
    whole, (m, n) = change.square().sum(), change.shape
    found = {
        "wide_W": lowrank.entropy_rank(W),
        "wide_update": lowrank.entropy_rank(change),
        "sides": min(m, n),
        "ninety_W": lowrank.energy_rank(W),
        "ninety_update": lowrank.energy_rank(change),
        "best": lowrank.energy(change, rank),
        "inside": (U.T @ change @ Vt.T).square().sum() / whole,
        "columns": (U.T @ change).square().sum() / whole,
        "rows": (change @ Vt.T).square().sum() / whole,
        "by_chance": rank * rank / (m * n),
        "columns_by_chance": rank / m,
    }
    return {name: round(float(value), 5) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", default=PARTS, help=f"any of {', '.join(PARTS)}; all without"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    tried = sweep(
        RESULTS / "sweep-rates.json",
        "learning rates tried for the sweeps, one seed",
        rates(),
        options.jobs,
    )
    for part in options.parts:
        if part == "ranks":
            sweep(
                RESULTS / "sweep-ranks.json",
                "LoRA by rank beside full fine-tuning and small models, two tasks",
                ranks(tried),
                options.jobs,
            )
        elif part == "update":
            sweep(
                RESULTS / "sweep-update.json",
                "where the update of full fine-tuning lies, beside LoRA's",
                updates(tried),
                options.jobs,
                update_run,
            )
        elif part == "precision":
            told = (
                "adapters of four ranks over the shipped base at 16 to 2 bits, and full "
                "fine-tuning, on extract"
            )
            sweep(RESULTS / "sweep-precision.json", told, precisions(tried), options.jobs)


if __name__ == "__main__":
    main()
