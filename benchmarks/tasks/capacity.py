"""How much a LoRA can learn by heart: recall of made-up facts against rank and place, beside full
fine-tuning, and what the base forgets meanwhile. `python -m benchmarks.tasks.capacity`

What it replaces: tasks on which rank 1 does as well as rank 64, since only a form is learned.
How it works: the first FACTS rows of data/tasks/facts, six random digits each, are shown EXPOSURES
times. `rates` tries learning rates for every place and rank with a seed that is used nowhere else,
over a grid that goes on in steps of √10 until its best rate lies inside; the best is that with the
lowest loss on the facts. `ranks` runs each kind at its best rate with three seeds. A record holds

    recall   how many of ASKED facts greedy decoding gets right to the last digit
    bits     what of the facts is stored, by the loss: FACTS · (6·log₂ 10 − nats an answer / ln 2);
             an answer's end is counted with it, so it is never too high
    before, after   loss on held-out documents of the base's own text, and look-up in them

The base and what it learns stand still but for the method, so a curve over rank is one of room.
α is 2·rank everywhere: with a fixed α low ranks seem full while it is only their rate that is low.
What it leaves out: more exposures (published: about 2 bits a number after 1,000 of them).
Where numerics differ: see kit/short_runs.py.

    python -m benchmarks.tasks.capacity [rates ranks] [--jobs 2]
"""

from __future__ import annotations

import argparse
import math
import time

from benchmarks.kit.short_runs import RESULTS, sweep

FACTS, EXPOSURES, BATCH, ASKED = 300, 75, 64, 200
SEEDS, TRIED = (0, 1, 2), 9
PLACES = (("all", (1, 4, 16)), (["q_proj", "v_proj"], (1, 2, 4, 8, 16)))  # targets, ranks
RATES = {"lora": (1e-3, 3.16e-3, 1e-2), "full": (3.16e-4, 1e-3, 3.16e-3)}
GRID = tuple(round(10 ** (half / 2), 2 - math.floor(half / 2)) for half in range(-10, 1))
PARTS = ("rates", "ranks")


def kinds() -> list[dict]:
    """What is compared: LoRA by place and rank, and full fine-tuning."""
    found = [
        {"method": "lora", "targets": place, "rank": rank, "alpha": 2 * rank}
        for place, ranks in PLACES
        for rank in ranks
    ]
    return [*found, {"method": "full", "targets": "all", "rank": 0, "alpha": 0}]


def recipe(kind: dict, lr: float, seed: int) -> dict:
    steps = math.ceil(FACTS * EXPOSURES / BATCH)
    told = {"task": "facts", "facts": FACTS, "precision": "fp32", "asked": ASKED}
    return {**told, "steps": steps, "batch_size": BATCH, "lr": lr, "seed": seed, **kind}


def of_kind(records: list[dict], kind: dict) -> list[dict]:
    return [r for r in records if all(r[name] == value for name, value in kind.items())]


def loss(record: dict) -> float:
    """On the facts; a run that came to no number is worse than any."""
    return math.inf if record["facts_loss"] is None else record["facts_loss"]


def best(tried: list[dict], kind: dict) -> float:
    """The rate whose run ended with the lowest loss on the facts."""
    return min(of_kind(tried, kind), key=loss)["lr"]


def open_ends(tried: list[dict], kind: dict) -> list[float]:
    """Rates still to be tried before the best one has a worse one on either side."""
    rates = sorted(record["lr"] for record in of_kind(tried, kind))
    found = GRID.index(best(tried, kind))
    return [GRID[i] for i in (found - 1, found + 1) if GRID[i] not in rates]


def stored(loss: float | None, tokens: int, digits: int, facts: int) -> float:
    """Bits that a model holds of `facts` numbers, by its mean loss in nats over an answer's tokens:
    those of the digits, less those that are still missing.
    """
    if loss is None:
        return 0.0
    return max(0.0, digits * math.log2(10) - tokens * loss / math.log(2)) * facts


def one_run(plan: dict) -> dict:
    """Train on the facts and look at what is known and what is forgotten, at one thread."""
    import torch

    torch.set_num_threads(1)
    from benchmarks.kit.forgetting import own_text
    from benchmarks.kit.short_runs import adapted
    from minilora import train
    from minilora.errors import MiniloraError
    from minilora.system.files import data_folder
    from minilora.text import encode_rows, read_split

    began = time.perf_counter()
    model, tokenizer = adapted(plan)
    examples = read_split(data_folder() / "tasks" / "facts", "train")[: plan["facts"]]
    rows = encode_rows(examples, tokenizer)
    settings = {name: plan[name] for name in ("steps", "batch_size", "lr", "seed")}
    before, facts_loss, recalled = own_text(model), None, 0
    try:
        losses = train.fit(model, rows, progress=False, **settings).losses
        facts_loss = train.evaluate_loss(model, rows)
        recalled, _, _ = train.exact_match(model, tokenizer, examples[: plan["asked"]])
    except MiniloraError:  # its loss was no number
        losses = []
    answer = sum(label >= 0 for label in rows[0][1])  # the digits and the end
    bits = stored(facts_loss, answer, len(examples[0]["response"]), plan["facts"])
    return {
        **plan,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "loss": [round(each, 4) for each in losses[:: max(1, len(losses) // 50)]],
        "facts_loss": None if facts_loss is None else round(facts_loss, 5),
        "recall": recalled,
        "bits": round(bits, 1),
        "before": before,
        "after": own_text(model),
        "seconds": round(time.perf_counter() - began, 1),
    }


def tune(jobs: int) -> list[dict]:
    """Records of rates, over a grid that is open at neither end."""
    wanted = [recipe(kind, lr, TRIED) for kind in kinds() for lr in RATES[kind["method"]]]
    while True:
        about = "learning rates tried on the facts, one seed"
        tried = sweep(RESULTS / "capacity-rates.json", about, wanted, jobs, one_run)
        more = [recipe(kind, lr, TRIED) for kind in kinds() for lr in open_ends(tried, kind)]
        if not more:
            return tried
        wanted += more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, help="rates, ranks; both without")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    tried = tune(options.jobs)
    if "ranks" in options.parts:
        runs = [recipe(kind, best(tried, kind), seed) for seed in SEEDS for kind in kinds()]
        about = "recall of facts by rank and place, and what is forgotten"
        sweep(RESULTS / "capacity.json", about, runs, options.jobs, one_run)


if __name__ == "__main__":
    main()
